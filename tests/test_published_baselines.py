"""Routers of papers: on views made by hand each obeys the law that its paper states."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from rllib_envs.baselines import HEURISTICS
from rllib_envs.heuristic import RoutingPolicy, available, expert_feature, present, whatif_feature
from rllib_envs.published_baselines import lmetric, polyserve, route_balance, slo_headroom
from rllib_envs.scenario import Observation, Scenario
from rllib_envs.simulation import Simulation
from tests.draws import examples
from tests.shown import choose, forbid, shown
from tests.worlds import seeds, small

ROUTERS: dict[str, RoutingPolicy] = {
    "lmetric": lmetric,
    "RouteBalance": route_balance,
    "SLO headroom, least": slo_headroom,
    "SLO headroom, most": partial(slo_headroom, most=1),
    "PolyServe": polyserve,
}
every_router = pytest.mark.parametrize("router", ROUTERS.values(), ids=list(ROUTERS))


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return small("edge6", observation=Observation(whatif=True))


@pytest.fixture(scope="module")
def three() -> Scenario:
    return small("edge3", observation=Observation(whatif=True))


def random_views(scenario: Scenario, seed: int, batch: int = 32) -> Simulation:
    """Clusters that show random values of every feature; some experts are closed."""
    rng = np.random.default_rng(seed)
    simulation = Simulation(scenario, batch)
    view = simulation.view
    for array in (view.experts, view.arrived, view.whatif):
        array[:] = rng.exponential(size=array.shape)
    view.action_mask[:, :-1] = rng.random((batch, scenario.n_experts)) < 0.8
    return simulation


def choices(router: RoutingPolicy, simulation: Simulation) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The clusters where any expert is open, and the expert picked in each."""
    picked = router(simulation, np.random.default_rng(0))
    open_ = np.flatnonzero(available(simulation.view).any(axis=1))
    assert (picked[open_] < simulation.scenario.n_experts).all()  # none of them drops a request
    return open_, picked[open_]


@every_router
@examples(10)
@given(seed=seeds)
def test_a_permutation_of_the_experts_permutes_the_choice(router: RoutingPolicy, scenario: Scenario, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(scenario.n_experts)
    plain = random_views(scenario, seed)
    permuted = Simulation(replace(scenario, experts=tuple(scenario.experts[i] for i in order)), plain.batch)
    for name in ("experts", "arrived", "whatif"):
        getattr(permuted.view, name)[:] = getattr(plain.view, name)[:, order]
    permuted.view.action_mask[:, :-1] = plain.view.action_mask[:, order]
    np.testing.assert_array_equal(order[choices(router, permuted)[1]], choices(router, plain)[1])


def test_lmetric_multiplies_prefill_and_batch(three: Scenario) -> None:
    prompt = {"prompt": [0.1, 0.1, 0.1]}
    assert choose(lmetric, shown(three, running=[4 / 32, 3 / 32, 8 / 32], **prompt)) == {1}
    assert choose(lmetric, shown(three, running=[1 / 32, 3 / 32, 8 / 32], prefill_backlog=[1, 0, 0], **prompt)) == {1}
    assert choose(lmetric, shown(three, running=[0, 2 / 32, 0], prefill_backlog=[0.1, 0, 0.05], **prompt)) == {2}


@examples(20)
@given(seed=seeds)
def test_route_balance_takes_nobody_late_while_another_is_in_time(scenario: Scenario, seed: int) -> None:
    simulation = random_views(scenario, seed)
    latency = whatif_feature(simulation.view, "own_latency")
    whatif_feature(simulation.view, "own_success")[:] = 1 / (1 + np.exp((latency - 1) / 0.1))
    open_, picked = choices(route_balance, simulation)
    soonest = np.where(available(simulation.view), latency, np.inf).min(axis=1)[open_]
    surely = soonest < 1 - 0.1 * np.log(0.7 / 0.3)  # where P(in time) is .7
    assert surely.any()
    assert (latency[open_, picked][surely] < 1).all()


def test_route_balance_weighs_quality_latency_and_cost(three: Scenario) -> None:
    params_b = [expert.params_b for expert in three.experts]
    cheapest, alike = int(np.argmin(params_b)), {"own_success": [1.0] * 3, "predicted_length": [1.0] * 3, "prompt": [0.2] * 3}
    view = shown(three, predicted_score=[0.5, 0.5, 0.4], own_latency=[0.8, 0.4, 0.4], **alike)
    assert choose(partial(route_balance, latency=1.0, cost=0.0), view) == {1}
    assert choose(partial(route_balance, latency=0.0, cost=0.0), forbid(view, 1)) == {0}
    level = shown(three, predicted_score=[0.5] * 3, own_latency=[0.5] * 3, **alike)
    assert choose(partial(route_balance, latency=0.0, cost=1.0), level) == {cheapest}
    busy = shown(three, predicted_score=[0.5] * 3, own_latency=[0.5] * 3, running=[3 / 32, 2 / 32, 1 / 32], **alike)
    assert choose(partial(route_balance, latency=0.0, cost=0.0), busy) == {2}  # a tie goes to the shortest queue


def test_route_balance_relaxes_its_filter_step_by_step(three: Scenario) -> None:
    scores = {"predicted_score": [0.2, 0.5, 0.9], "own_latency": [1.0, 1.0, 1.0]}
    by_score = partial(route_balance, latency=0.0, cost=0.0)
    assert choose(by_score, shown(three, own_success=[0.75, 0.65, 0.6], **scores)) == {0}
    assert choose(by_score, shown(three, own_success=[0.5, 0.62, 0.55], **scores)) == {1}
    assert choose(by_score, shown(three, own_success=[0.45, 0.45, 0.35], **scores)) == {1}
    assert choose(by_score, shown(three, own_success=[0.3, 0.3, 0.1], **scores)) == {2}  # all late: all are kept


@examples(20)
@given(seed=seeds)
def test_headroom_is_least_or_most_among_those_in_time(scenario: Scenario, seed: int) -> None:
    simulation = random_views(scenario, seed, batch=256)
    whatif_feature(simulation.view, "own_latency")[:] += 0.7
    open_, least = choices(slo_headroom, simulation)
    _, most = choices(partial(slo_headroom, most=1), simulation)
    latency = whatif_feature(simulation.view, "own_latency")[open_]
    mask, at = available(simulation.view)[open_], np.arange(open_.size)
    soonest = np.where(mask, latency, np.inf).min(axis=1)
    possible = soonest < 1
    assert 0 < possible.sum() < possible.size
    assert (latency[at, least][possible] < 1).all()
    np.testing.assert_array_equal(latency[at, most][possible], soonest[possible])
    latest = np.where(mask & (latency < 1), latency, -np.inf).max(axis=1)
    np.testing.assert_array_equal(latency[at, least][possible], latest[possible])
    np.testing.assert_array_equal(least[~possible], most[~possible])


def test_without_headroom_idle_experts_go_first(three: Scenario) -> None:
    late = {"own_latency": [1.5, 1.2, 3.0]}
    assert choose(slo_headroom, shown(three, running=[1 / 32] * 3, **late)) == {1}
    assert choose(slo_headroom, shown(three, running=[1 / 32, 1 / 32, 0], **late)) == {2}
    assert choose(partial(slo_headroom, bound=1.3), shown(three, running=[1 / 32, 1 / 32, 0], **late)) == {1}


@examples(20)
@given(seed=seeds)
def test_packing_takes_the_fullest_feasible_expert(scenario: Scenario, seed: int) -> None:
    """Experts alike but for the requests that they have: the fullest that can hold one more, else the emptiest."""
    rng = np.random.default_rng(seed)
    simulation = Simulation(scenario, 32)
    view, shape = simulation.view, (32, scenario.n_experts)
    view.action_mask[:] = 1
    expert_feature(view, "base_time")[:] = 0.3
    expert_feature(view, "sequence_time")[:] = 1  # 1/32 of the SLO for each sequence
    expert_feature(view, "running")[:] = rng.integers(0, 40, shape) / 32
    whatif_feature(view, "own_latency")[:] = rng.uniform(0.3, 1.2, shape)
    _, picked = choices(partial(polyserve, bound=0.9), simulation)
    count = present(view)
    feasible = (0.3 + count / 32 <= 0.9) & (whatif_feature(view, "own_latency") <= 0.9)
    some = feasible.any(axis=1)
    assert some.any()
    taken = count[np.arange(32), picked]
    np.testing.assert_array_equal(taken[some], np.where(feasible, count, -1).max(axis=1)[some])
    np.testing.assert_array_equal(taken[~some], count.min(axis=1)[~some])


def test_packing_counts_the_memory_that_those_present_will_fill(three: Scenario) -> None:
    same = {"base_time": [0.3] * 3, "context_time": [1.0] * 3, "own_latency": [0.5] * 3}  # 1/16,384 SLO for each token
    assert choose(polyserve, shown(three, kv_reserved=[0.1, 0.6, 0.2], **same)) == {1}
    assert choose(polyserve, shown(three, kv_reserved=[0.1, 0.8, 0.2], **same)) == {2}
    assert choose(polyserve, shown(three, kv_reserved=[0.9, 0.8, 0.95], **same)) == {1}


def test_each_has_numbers_to_tune_that_change_something() -> None:
    for name, numbers in {
        "route-balance": {"tau", "latency", "cost"},
        "slo-headroom": {"bound", "most"},
        "polyserve": {"bound"},
        "lodestar": {"tau", "every", "explore"},
    }.items():
        assert HEURISTICS[name].grid.keys() == numbers
        assert HEURISTICS[name].needs == HEURISTICS["impact-greedy"].needs  # the same information
    assert not HEURISTICS["lmetric"].grid
