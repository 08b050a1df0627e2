"""The traced graph of a router gives the router's scores, whatever the size, and no others."""

from dataclasses import replace

import pytest
import torch

from models.export.traced import _trace, fast_scores, random_observation
from models.paper.networks import PaperPolicy, PaperSpec
from models.router import RouterSpec
from rllib_envs.scenario import Observation
from tests.models.observed import ENCODERS, busy, seen, stirred, untrained, world

OBSERVATION = Observation(whatif=True, calibrate=True, running_slots=5, waiting_slots=3)
EXAMPLE = random_observation(OBSERVATION, batch=2, experts=3, seed=0)
SPECS = {name: spec for name, spec in ENCODERS.items() if name != "pooled"} | {
    "default": RouterSpec(),
    "bare": RouterSpec(encoder="aggregates", hidden=8, impact_hidden=0, future=False, drop=False),
}
SIZES = [(1, 6), (1, 1), (7, 2), (3, 40), (1, 256)]


def as_the_router(scores, router, observation):
    with torch.inference_mode():
        torch.testing.assert_close(scores(observation), router(observation), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_scores_are_the_routers_at_any_size(spec):
    router = stirred(spec).eval()
    scores = fast_scores(router, EXAMPLE)
    for batch, experts in SIZES:
        as_the_router(scores, router, random_observation(OBSERVATION, batch=batch, experts=experts, seed=batch + experts))
    other = replace(OBSERVATION, running_slots=2, waiting_slots=9)
    as_the_router(scores, router, random_observation(other, batch=4, experts=5, seed=1))


@pytest.mark.parametrize("whatif", [True, False])
def test_scores_are_the_routers_in_clusters_under_load(whatif):
    router = stirred(RouterSpec(impact=whatif)).eval()
    scores = fast_scores(router, random_observation(Observation(whatif=whatif), batch=2, experts=3, seed=0))
    for n in (2, 6):
        as_the_router(scores, router, seen(busy(world(n, whatif=whatif))))


def test_the_same_observation_has_the_same_scores_whatever_came_between():
    scores = fast_scores(stirred(SPECS["default"]).eval(), EXAMPLE)
    observations = [random_observation(OBSERVATION, batch=batch, experts=experts, seed=3) for batch, experts in SIZES]
    with torch.inference_mode():
        first = [scores(observation) for observation in observations]
        again = [scores(observation) for observation in reversed(observations)]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))


def test_the_graph_keeps_the_weights_that_it_was_made_with():
    router = stirred(SPECS["han"]).eval()
    scores = fast_scores(router, EXAMPLE)
    with torch.inference_mode():
        before = scores(EXAMPLE)
    torch.nn.init.zeros_(router.estimator.correction.last.bias)
    with torch.inference_mode():
        assert torch.equal(scores(EXAMPLE), before)


@pytest.mark.slow
def test_what_cannot_be_traced_is_called_as_it_is():
    for network in (untrained(ENCODERS["pooled"]), PaperPolicy(PaperSpec(experts=3, hidden=8))):
        assert fast_scores(network, EXAMPLE) is network


class Resized(torch.nn.Module):
    """Numbers in arithmetic of tensors, and of sizes, which must stay whole."""

    def forward(self, x):
        return (3 * x[:, None].expand(-1, 2 * x.shape[0] + 1, -1) + 0.25)[:, : x.shape[1] - 1] / 7


def test_numbers_that_sizes_are_computed_with_stay_whole():
    module = Resized().eval()
    traced = _trace(module, (torch.rand(2, 4),))
    for shape in ((2, 4), (5, 3), (1, 9)):
        x = torch.rand(shape)
        torch.testing.assert_close(traced(x), module(x))
