"""The state's value and the usual quality of a request: any number of experts, in any order."""

import pytest
import torch
from torch import Tensor

from models.critic import ActionIndependentBaseline, StateValue
from models.features import FeatureColumns, read_columns
from tests.models.observed import busy, seen, stir, world

DOUBLE = torch.float64
EMBEDDING = 5


@pytest.fixture(scope="module")
def columns():
    return read_columns(seen(busy(world()), DOUBLE))


@pytest.fixture
def value():
    torch.manual_seed(3)
    made = StateValue(hidden=16, embedding=EMBEDDING).to(DOUBLE)
    stir(made)
    return made


@pytest.fixture
def usual():
    torch.manual_seed(4)
    return ActionIndependentBaseline(hidden=16).to(DOUBLE)


@pytest.fixture(scope="module")
def embedding(columns):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*columns.marginal.shape, EMBEDDING, generator=generator, dtype=DOUBLE)


def some(columns, index):
    """The columns of some experts, or of all in another order."""
    return FeatureColumns(*(x[:, index] for x in columns))


def test_the_order_of_the_experts_does_not_matter(columns, value, usual, embedding):
    order = [4, 2, 0, 5, 1, 3]
    torch.testing.assert_close(value(some(columns, order), embedding[:, order]), value(columns, embedding))
    torch.testing.assert_close(usual(some(columns, order)), usual(columns))


def test_the_value_of_a_cluster_is_the_sum_of_its_parts(columns, value, embedding):
    first, rest = [0, 3], [1, 2, 4, 5]
    parts = [value(some(columns, index), embedding[:, index]) for index in (first, rest)]
    torch.testing.assert_close(sum(parts), value(columns, embedding))


def test_twice_the_cluster_is_worth_twice_as_much_and_as_usual(columns, value, usual, embedding):
    twice = some(columns, [*range(6), *range(6)])
    torch.testing.assert_close(value(twice, embedding.repeat(1, 2, 1)), 2 * value(columns, embedding))
    torch.testing.assert_close(usual(twice), usual(columns))


def test_the_value_is_zero_before_training_and_hears_no_embedding_then(columns, embedding):
    fresh = StateValue(hidden=16, embedding=EMBEDDING).to(DOUBLE)
    assert not fresh(columns, embedding).any()
    torch.nn.init.normal_(fresh.network.last.weight)
    assert torch.equal(fresh(columns, embedding), fresh(columns, None))
    assert fresh(columns).std() > 0


def inputs_that_count(output: Tensor, columns: FeatureColumns) -> set[str]:
    gradients = torch.autograd.grad(output.sum(), list(columns), allow_unused=True)
    return {
        name for name, gradient in zip(FeatureColumns._fields, gradients, strict=True) if gradient is not None and gradient.any()
    }


def test_the_value_does_not_hear_of_the_arrived_request_and_the_usual_quality_of_no_state(columns, value, usual):
    """The one is for the requests to come; of the other no decision may change anything."""
    watched = FeatureColumns(*(x.clone().requires_grad_() for x in columns))
    assert inputs_that_count(value(watched), watched) == {"state"}
    assert inputs_that_count(usual(watched), watched) == {"request"}


def test_a_request_of_better_told_scores_has_another_usual_quality():
    now = seen(busy(world()), DOUBLE)
    better = now | {"arrived": now["arrived"] + torch.tensor([0.0, 0.2, 0.0], dtype=DOUBLE)}
    torch.manual_seed(4)
    network = ActionIndependentBaseline(hidden=16).to(DOUBLE)
    assert (network(read_columns(better)) != network(read_columns(now))).all()
    assert torch.equal(read_columns(better).state, read_columns(now).state)
