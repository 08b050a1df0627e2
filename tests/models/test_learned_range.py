"""What a network says counts where it was trained, fades out beyond, and is nothing a width of the range away."""

from dataclasses import replace

import pytest
import torch

from models.export.bundle import load_bundle, save_bundle
from models.learned_range import LearnedRange
from models.router import Router, RouterSpec
from tests.models.observed import ENCODERS, busy, seen, stirred, world

SPEC = replace(ENCODERS["aggregates"], bounded=True)


@pytest.fixture(scope="module")
def observation():
    return seen(busy(world()))


def trained(observation, spec: RouterSpec = SPEC) -> Router:
    """A router with random weights that has seen these observations in training."""
    router = stirred(spec).train()
    router(observation)
    return router.eval()


def test_a_weight_falls_from_one_at_the_range_to_zero_a_width_beyond():
    measured = LearnedRange(2)
    rows = torch.tensor([[0.0, -1.0], [2.0, 1.0]])
    assert torch.equal(measured(rows), torch.ones(2, 1))
    measured.eval()
    asked = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.5, 0.0], [2.5, 2.0], [-1.0, 0.0], [4.0, 0.0], [0.0, 9.0]])
    torch.testing.assert_close(measured(asked)[:, 0], torch.tensor([1.0, 1.0, 0.75, 0.5, 0.5, 0.0, 0.0]))
    assert torch.equal(measured.low, rows[0])  # asking does not widen it


def test_a_column_without_width_counts_as_one_tenth_wide():
    measured = LearnedRange(1)
    measured(torch.tensor([[3.0]]))
    torch.testing.assert_close(measured.eval()(torch.tensor([[3.05]])), torch.tensor([[0.5]]))


def test_in_training_and_inside_the_range_nothing_changes_to_the_last_bit(observation):
    free, bounded = stirred(ENCODERS["aggregates"]), stirred(SPEC)
    bounded.load_state_dict(free.state_dict(), strict=False)
    assert torch.equal(bounded.train()(observation), free(observation))
    assert torch.equal(bounded.eval()(observation), free(observation))


def test_far_outside_it_is_the_router_without_networks(observation):
    router = trained(observation)
    alone = Router(replace(SPEC, hidden=0, impact_hidden=0)).eval()
    assert router.price is not None
    assert alone.price is not None
    alone.price.load_state_dict(router.price.state_dict())
    far = {**observation, "arrived": observation["arrived"] + 100.0}
    torch.testing.assert_close(router(far), alone(far))
    assert not torch.allclose(router(observation), alone(observation))


def test_before_any_input_networks_count_for_nothing(observation):
    router = stirred(SPEC).eval()
    alone = Router(replace(SPEC, hidden=0, impact_hidden=0)).eval()
    assert router.price is not None
    assert alone.price is not None
    alone.price.load_state_dict(router.price.state_dict())
    torch.testing.assert_close(router(observation), alone(observation))


def test_a_bundle_keeps_the_range_in_torch_and_in_onnx(observation, tmp_path):
    scenario = world()
    router = trained(observation)
    assert save_bundle(tmp_path / "bundle", router, scenario.observation, {}, onnx=True) < 1e-4
    loaded = load_bundle(tmp_path / "bundle").router
    far = {**observation, "arrived": observation["arrived"] + 0.3}
    assert torch.equal(loaded(far), router(far))
    assert not torch.allclose(router(far), stirred_free(router)(far))


def stirred_free(router: Router) -> Router:
    """The router with the same weights and no range."""
    free = Router(replace(router.spec, bounded=False)).eval()
    free.load_state_dict({k: x for k, x in router.state_dict().items() if ".range." not in k})
    return free


def test_a_router_without_impact_has_nothing_to_fall_back_on_and_no_range():
    spec = replace(SPEC, impact=False)
    assert not [name for name, _ in Router(spec).named_buffers() if ".range." in name]
