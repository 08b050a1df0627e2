"""Heuristic routers: on a view made by hand each picks the evident expert; in a simulation they rank as they must."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given

from rllib_envs.baselines import (
    RoutingPolicy,
    calibrated_impact_greedy,
    impact_greedy,
    impact_greedy_true,
    join_shortest_queue,
    least_kv,
    least_work,
    myopic_impact_greedy,
    power_of_two,
    quality_greedy,
    random,
    round_robin,
)
from rllib_envs.published_baselines import lmetric, lodestar, polyserve, route_balance, slo_headroom
from rllib_envs.scenario import Faults, Observation, Predictions, Scenario
from rllib_envs.simulation import Simulation
from tests.draws import examples
from tests.shown import choose, forbid, shown
from tests.worlds import random_world, seeds, simulation_of, small

LOOKAHEAD = Observation(whatif=True, counterfactual=True)
N = 3
ROUTERS: dict[str, RoutingPolicy] = {
    "random": random,
    "round robin": round_robin,
    "join shortest queue": join_shortest_queue,
    "power of two": power_of_two,
    "least work": least_work,
    "least kv": least_kv,
    "quality greedy": quality_greedy,
    "quality greedy, capped": partial(quality_greedy, cap=2),
    "impact greedy": impact_greedy,
    "impact greedy, priced": partial(impact_greedy, price=1.0),
    "impact greedy, myopic": myopic_impact_greedy,
    "impact greedy, calibrated": calibrated_impact_greedy,
    "impact greedy, true": impact_greedy_true,
    "lmetric": lmetric,
    "RouteBalance": route_balance,
    "SLO headroom, least": slo_headroom,
    "SLO headroom, most": partial(slo_headroom, most=1),
    "PolyServe": polyserve,
    "Lodestar": lodestar.policy(every=8, explore=0.1),
}
every_router = pytest.mark.parametrize("router", ROUTERS.values(), ids=list(ROUTERS))


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return small("edge3", observation=LOOKAHEAD)


@every_router
def test_where_nobody_can_take_it_the_request_is_dropped(router: RoutingPolicy, scenario: Scenario) -> None:
    assert choose(router, forbid(shown(scenario, own_success=[1, 1, 1], predicted_score=[1, 1, 1]), 0, 1, 2), 5) == {N}


@every_router
def test_a_masked_expert_is_never_chosen(router: RoutingPolicy, scenario: Scenario) -> None:
    """However good it looks: whatever the router goes by, here one expert is best, and it is masked."""
    rng = np.random.default_rng(1)
    simulation = Simulation(scenario, 1)
    view = simulation.view
    for _ in range(200):
        for array in (view.experts, view.arrived, view.whatif, simulation.marginal):
            array[:] = rng.exponential(size=array.shape)
        open_ = rng.random(N) < 0.5
        view.action_mask[0, :N] = open_
        allowed = {*np.flatnonzero(open_).tolist(), N}
        assert choose(router, simulation) <= allowed


def test_random_takes_each_expert_as_often() -> None:
    simulation = forbid(shown(small("edge3", observation=LOOKAHEAD)), 1)
    rng = np.random.default_rng(2)
    counts = np.bincount([int(random(simulation, rng)[0]) for _ in range(2000)], minlength=N + 1)
    assert counts[[1, 3]].tolist() == [0, 0]
    assert abs(counts[0] - 1000) < 4.5 * np.sqrt(500)  # binomial: a false alarm in 7 of a million


def test_round_robin_goes_round_and_skips_the_masked(scenario: Scenario) -> None:
    simulation = shown(scenario)
    rng = np.random.default_rng(0)

    def turns() -> list[int]:
        picked = []
        for r in range(6):
            simulation.cursor[:] = r
            picked.append(int(round_robin(simulation, rng)[0]))
        return picked

    assert turns() == [0, 1, 2, 0, 1, 2]
    forbid(simulation, 1)
    assert turns() == [0, 2, 2, 0, 2, 2]


def test_the_shortest_queue_counts_who_runs_and_who_waits(scenario: Scenario) -> None:
    simulation = shown(scenario, running=[5 / 32, 2 / 32, 3 / 32], waiting=[0, 4 / 32, 1 / 32])
    assert choose(join_shortest_queue, simulation, 20) == {2}
    assert choose(join_shortest_queue, forbid(simulation, 2), 20) == {0}
    tied = shown(scenario, running=[1 / 32, 2 / 32, 1 / 32])
    assert choose(join_shortest_queue, tied, 50) == {0, 2}


def test_power_of_two_takes_the_shorter_of_two(scenario: Scenario) -> None:
    simulation = shown(scenario, running=[3 / 32, 1 / 32, 2 / 32])
    rng = np.random.default_rng(3)
    counts = np.bincount([int(power_of_two(simulation, rng)[0]) for _ in range(3000)], minlength=N + 1)
    # Of the three pairs two hold the shortest queue, one the second; the longest is never taken.
    assert counts[[0, 3]].tolist() == [0, 0]
    assert abs(counts[1] - 2000) < 4.5 * np.sqrt(3000 * 2 / 9)
    assert choose(power_of_two, forbid(simulation, 1), 50) == {2}
    assert choose(power_of_two, forbid(simulation, 1, 2), 50) == {0}  # alone there is no second


def test_least_work_weighs_tokens_by_the_engines_time(scenario: Scenario) -> None:
    even = {"predicted_length": [1, 1, 1], "prompt": [0.1, 0.1, 0.1], "prefill_time": [1, 1, 1]}
    assert choose(least_work, shown(scenario, base_time=[0.5, 0.4, 0.6], **even)) == {1}
    assert choose(least_work, shown(scenario, base_time=[0.5] * 3, decode_backlog=[2, 1, 0.5], **even)) == {2}
    assert choose(least_work, shown(scenario, base_time=[0.5] * 3, prefill_backlog=[0, 1, 2], **even)) == {0}
    # A long backlog on an engine three times as fast
    assert choose(least_work, shown(scenario, base_time=[0.6, 0.2, 0.6], decode_backlog=[1, 2, 1], **even)) == {1}


def test_least_kv_takes_the_emptiest_memory(scenario: Scenario) -> None:
    assert choose(least_kv, shown(scenario, kv_used=[0.5, 0.2, 0.21]), 20) == {1}
    assert choose(least_kv, shown(scenario, kv_used=[0.5, 0.2, 0.2]), 50) == {1, 2}


def test_quality_greedy_takes_the_best_told_score_below_the_cap(scenario: Scenario) -> None:
    simulation = shown(scenario, predicted_score=[0.2, 0.9, 0.5], running=[0, 5 / 32, 1 / 32])
    assert choose(quality_greedy, simulation) == {1}
    assert choose(partial(quality_greedy, cap=5), simulation) == {2}
    assert choose(partial(quality_greedy, cap=1), simulation) == {0}
    crowded = shown(scenario, predicted_score=[0.2, 0.9, 0.5], running=[4 / 32, 5 / 32, 3 / 32])
    assert choose(partial(quality_greedy, cap=2), crowded) == {2}  # the shortest queue where all are full


def test_impact_greedy_weighs_what_it_gains_against_what_it_spoils(scenario: Scenario) -> None:
    scores = [expert.mean_score for expert in scenario.experts]
    sure = {"predicted_score": scores, "own_success": [1, 1, 1]}
    assert choose(impact_greedy, shown(scenario, **sure)) == {int(np.argmax(scores))}
    best = int(np.argmax(scores))
    harm = [0.0] * N
    harm[best] = -1.0
    assert choose(impact_greedy, shown(scenario, soft_change=harm, **sure)) == {int(np.argsort(scores)[-2])}
    assert choose(impact_greedy, shown(scenario, soft_change=[-1, -1, -1], **sure)) == {N}  # drops what only does harm
    hopeless = sure | {"own_success": [0, 0, 0]}
    assert choose(impact_greedy, shown(scenario, **hopeless)) == {N}
    hopeless["own_success"] = [0, 0.5, 0]
    assert choose(impact_greedy, shown(scenario, **hopeless)) == {1}


def test_impact_greedy_shrinks_what_it_is_told_to_the_mean(scenario: Scenario) -> None:
    means = np.array([expert.mean_score for expert in scenario.experts])
    low, high = int(np.argmin(means)), int(np.argmax(means))
    told = means.copy()
    told[low] = means[high] + 0.01  # a little better than the best: but noisy
    simulation = shown(scenario, predicted_score=told.tolist(), own_success=[1, 1, 1])
    assert choose(partial(impact_greedy, shrink=1.0), simulation) == {low}
    assert choose(partial(impact_greedy, shrink=0.0), simulation) == {high}


def test_a_price_makes_the_congested_expert_less_attractive(scenario: Scenario) -> None:
    means = [expert.mean_score for expert in scenario.experts]
    best = int(np.argmax(means))
    full = [0.0] * N
    full[best] = 1.0
    values = {
        "predicted_score": means,
        "own_success": [1] * N,
        "predicted_length": [1] * N,
        "prompt": [0.2] * N,
        "sequence_time": [0.05] * N,
        "context_time": [0.05] * N,
        "prefill_time": [1.0] * N,
        "kv_reserved": full,
    }
    simulation = shown(scenario, **values)
    assert choose(impact_greedy, simulation) == {best}
    assert choose(partial(impact_greedy, price=1e3), simulation).isdisjoint({best})
    longer = shown(scenario, **(values | {"kv_reserved": [1.0] * N, "predicted_length": [0.1, 1, 1]}))
    assert choose(partial(impact_greedy, price=1e3), longer) <= {0, N}


def test_the_reference_takes_the_best_true_marginal(scenario: Scenario) -> None:
    assert choose(impact_greedy_true, shown(scenario, marginal=[0.1, -0.2, 0.3], predicted_score=[1, 0, 0])) == {2}
    assert choose(impact_greedy_true, forbid(shown(scenario, marginal=[0.1, -0.2, 0.3]), 2)) == {0}


@every_router
@examples(10)
@given(seed=seeds)
def test_in_a_cluster_nobody_is_sent_where_there_is_no_room(router: RoutingPolicy, seed: int) -> None:
    scenario, episode, actions = random_world(np.random.default_rng(seed), observation=LOOKAHEAD)
    simulation = simulation_of(scenario, episode)
    rng = np.random.default_rng(0)
    for _ in actions:
        simulation.step(router(simulation, rng))
        assert simulation.steps["rejected"][0] == 0


def mean_qos(scenario: Scenario, router: RoutingPolicy, clusters: int = 24) -> np.ndarray:
    """(clusters,) QoS per arrival, the same episodes whatever the router."""
    simulation = Simulation(scenario, clusters)
    simulation.start_all(list(range(clusters)))
    rng = np.random.default_rng(0)
    for _ in range(scenario.workload.requests):
        simulation.step(router(simulation, rng))
    return np.array([simulation.records(b).qos.mean() for b in range(clusters)])


def paired_z(better: np.ndarray, worse: np.ndarray) -> float:
    """Mean of the paired differences in standard errors."""
    difference = better - worse
    return float(difference.mean() / (difference.std(ddof=1) / np.sqrt(difference.size)))


@pytest.fixture(scope="module")
def loaded() -> Scenario:
    """Edge6 at about its capacity, with predictions that err."""
    predictions = Predictions(law="oracle-noise", score_sd=0.2, length_log_sd=0.5)
    scenario = small("edge6", 250, observation=LOOKAHEAD, predictions=predictions)
    return replace(scenario, workload=replace(scenario.workload, load=20.0))


@pytest.mark.slow
def test_at_load_the_shortest_queue_beats_random() -> None:
    """Where all experts are alike, and have few seats, so that only the queues matter."""
    edge6 = small("edge6", 400)
    seats = replace(edge6.experts[3].engine, max_num_seqs=4)
    experts = tuple(replace(edge6.experts[3], name=f"llama {i}", engine=seats) for i in range(4))
    alike = replace(edge6, experts=experts, workload=replace(edge6.workload, load=1.6))
    shortest, two, chance = (mean_qos(alike, router) for router in (join_shortest_queue, power_of_two, random))
    assert paired_z(shortest, chance) > 4
    assert paired_z(two, chance) > 4  # two choices are worth most of it (Mitzenmacher 2001)
    assert (two - chance).mean() > 0.5 * (shortest - chance).mean()


@pytest.mark.slow
def test_looking_ahead_beats_the_shortest_queue(loaded: Scenario) -> None:
    assert paired_z(mean_qos(loaded, impact_greedy), mean_qos(loaded, join_shortest_queue)) > 4


@pytest.mark.slow
def test_true_predictions_are_worth_something(loaded: Scenario) -> None:
    assert paired_z(mean_qos(loaded, impact_greedy_true), mean_qos(loaded, impact_greedy)) > 4


@pytest.mark.slow
def test_calibration_mends_what_wrong_figures_spoil(loaded: Scenario) -> None:
    wrong = replace(loaded, faults=Faults(engine_factor=1.4))
    calibrated = replace(wrong, observation=replace(LOOKAHEAD, calibrate=True))
    assert paired_z(mean_qos(calibrated, calibrated_impact_greedy), mean_qos(wrong, impact_greedy)) > 4


@pytest.mark.parametrize("parameters", [{}, {"price": 0.7, "shrink": 0.4}])
def test_calibrated_impact_greedy_differs_by_what_it_is_shown_alone(scenario: Scenario, parameters: dict[str, float]) -> None:
    simulation = Simulation(scenario, 4)
    simulation.start_all([1, 2, 3, 4])
    rng = np.random.default_rng(0)
    for _ in range(40):
        actions = impact_greedy(simulation, rng, **parameters)
        np.testing.assert_array_equal(calibrated_impact_greedy(simulation, rng, **parameters), actions)
        simulation.step(actions)


def test_myopic_impact_greedy_asks_no_price(scenario: Scenario) -> None:
    simulation = Simulation(scenario, 4)
    simulation.start_all([1, 2, 3, 4])
    rng = np.random.default_rng(0)
    priced: list[bool] = []
    for _ in range(40):
        actions = impact_greedy(simulation, rng, price=0.0, shrink=0.9)
        np.testing.assert_array_equal(myopic_impact_greedy(simulation, rng, shrink=0.9), actions)
        priced.append(bool((impact_greedy(simulation, rng, price=20.0, shrink=0.9) != actions).any()))
        simulation.step(actions)
    assert any(priced)
