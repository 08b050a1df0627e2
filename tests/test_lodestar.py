"""Lodestar: it repeats, forgets between episodes, keeps a bounded memory, and learns within an episode."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from rllib_envs.heuristic import arrived_feature, available, best_expert, heuristic, whatif_feature
from rllib_envs.lodestar import INPUTS, SAMPLES, Learner, Lodestar
from rllib_envs.published_baselines import lodestar
from rllib_envs.scenario import Observation, Scenario
from rllib_envs.simulation import Simulation
from tests.worlds import small


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return small("edge3", 120, observation=Observation(whatif=True, running_slots=1, waiting_slots=1))


def run(policy: Lodestar, simulation: Simulation, rng: np.random.Generator) -> NDArray[np.int64]:
    """(requests, B) actions up to the end of the episodes."""
    actions = []
    while not simulation.over.all():
        actions.append(policy(simulation, rng))
        simulation.step(actions[-1])
    return np.array(actions)


def episodes(scenario: Scenario, seeds: list[int], router_seed: int = 0, **numbers: float) -> NDArray[np.int64]:
    simulation = Simulation(scenario, len(seeds))
    simulation.start_all(seeds)
    return run(Lodestar(**numbers), simulation, np.random.default_rng(router_seed))


def test_one_seed_gives_one_course(scenario: Scenario) -> None:
    numbers = {"every": 10, "explore": 0.1}
    first, again, other = (episodes(scenario, [1, 2], seed, **numbers) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_no_cluster_depends_on_another(scenario: Scenario) -> None:
    numbers = {"every": 10, "explore": 0.1}
    np.testing.assert_array_equal(
        episodes(scenario, [1], **numbers)[:, 0],
        episodes(scenario, [1, 2, 3], **numbers)[:, 0],
    )


def trusting(simulation: Simulation) -> NDArray[np.int64]:
    """What it picks without having learned anything."""
    view = simulation.view
    return best_expert(arrived_feature(view, "predicted_score") * whatif_feature(view, "own_success"), available(view))


def test_it_trusts_the_what_if_results_until_it_has_learned_and_again_in_the_next_episode(scenario: Scenario) -> None:
    simulation, policy, rng = Simulation(scenario, 2), Lodestar(every=100), np.random.default_rng(0)
    for first in (1, 3):
        simulation.start_all([first, first + 1])
        for _ in range(100):
            actions = policy(simulation, rng)
            np.testing.assert_array_equal(actions, trusting(simulation))
            simulation.step(actions)
        run(policy, simulation, rng)


def test_an_episode_that_begins_in_one_cluster_leaves_the_others_their_memory(scenario: Scenario) -> None:
    simulation, policy, rng = Simulation(scenario, 2), Lodestar(every=1000), np.random.default_rng(0)
    simulation.start_all([1, 2])
    for _ in range(20):
        simulation.step(policy(simulation, rng))
    simulation.start(0, 3)
    policy(simulation, rng)
    assert [len(policy._learners[b].requests) for b in (0, 1)] == [1, 21]


def test_memory_is_bounded() -> None:
    """Whatever the number of requests, it holds the last ones."""
    learner = Learner(np.random.default_rng(0), 0.1)
    before = sum(array.nbytes for array in vars(learner).values() if isinstance(array, np.ndarray))
    for request in range(SAMPLES + 500):
        learner.note(request, np.full(INPUTS, request, np.float32))
    assert sum(array.nbytes for array in vars(learner).values() if isinstance(array, np.ndarray)) == before < 2**20
    assert learner.requests == list(range(500, SAMPLES + 500))


@pytest.fixture(scope="module")
def planted(scenario: Scenario) -> Scenario:
    """Three experts that answer alike, none of them busy."""
    experts = tuple(replace(expert, mean_score=0.5, mean_output_tokens=200) for expert in scenario.experts)
    return replace(scenario, experts=experts, workload=replace(scenario.workload, load=1.5, requests=400))


def late_shares(scenario: Scenario, slow: int, clusters: int = 6, **numbers: float) -> tuple[float, float, Lodestar, Simulation]:
    """Share of late answers among the first and the last 150 requests, where one expert is secretly too slow for the SLO."""
    simulation, policy = Simulation(scenario, clusters), Lodestar(**numbers)
    simulation.start_all(list(range(clusters)))
    for name in ("c0_s", "b_s", "c_s", "a_s"):
        simulation.state.engines[name][:, slow] *= 4
    run(policy, simulation, np.random.default_rng(0))
    late = np.array([simulation.records(b).late for b in range(clusters)])
    return late[:, :150].mean(), late[:, -150:].mean(), policy, simulation


def test_it_learns_to_avoid_an_expert_that_is_slower_than_its_figures_say(planted: Scenario) -> None:
    first, last, policy, simulation = late_shares(planted, slow=0, every=50)
    ignorant = late_shares(planted, slow=0, every=10_000)[:2]
    assert last < 0.5 * first
    assert last < 0.5 * ignorant[1]
    assert first > 0.1
    _permutation_of_the_experts_permutes_rewards(policy._learners[0], simulation)


def _permutation_of_the_experts_permutes_rewards(learner: Learner, simulation: Simulation) -> None:
    rng = np.random.default_rng(0)
    features, score = rng.exponential(size=(5, INPUTS)).astype(np.float32), rng.random(5).astype(np.float32)
    order = rng.permutation(5)
    np.testing.assert_allclose(learner.reward(features[order], score[order]), learner.reward(features, score)[order], rtol=1e-4)
    untrained = Learner(rng, simulation.scenario.observation.whatif_tau)
    assert np.abs(learner.reward(features, score) - untrained.reward(features, score)).max() > 0.01


def test_a_heuristic_of_a_class_makes_a_new_object_for_each_run(scenario: Scenario) -> None:
    assert lodestar.policy(every=5) is not lodestar.policy(every=5)
    assert lodestar.parameters.keys() == {"tau", "every", "explore"}
    with pytest.raises(TypeError, match="period: described"):
        heuristic(parameters={"period": lodestar.parameters["every"]})(Lodestar)
    simulation = Simulation(scenario, 1)
    simulation.start_all([1])
    np.testing.assert_array_equal(lodestar(simulation, np.random.default_rng(0)), trusting(simulation))
