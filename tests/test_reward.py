"""The reward, term by term, against what the records say; the paper's penalty against its formula."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from rllib_envs.scenario import Observation, Reward, Scenario
from rllib_envs.sim.state import DROPPED, FINISHED, REJECTED
from rllib_envs.simulation import Simulation
from rllib_envs.workload.episode import Episode
from tests.draws import examples
from tests.worlds import REQUESTS, Twin, play, random_world, seeds, simulation_of, small, tight, twins_at

NONE = {field.name: 0.0 for field in fields(Reward)}


def only(**weights: float) -> Reward:
    """These terms and no others."""
    return Reward(**(NONE | weights))


def played(seed: int, reward: Reward, *, counterfactual: bool = False) -> tuple[Simulation, NDArray[np.float64]]:
    """A random world to its end, and the rewards (T,)."""
    observation = Observation(counterfactual=counterfactual)
    scenario, episode, actions = random_world(np.random.default_rng(seed), reward=reward, observation=observation)
    simulation = simulation_of(scenario, episode)
    return simulation, play(simulation, actions)[:, 0]


def per_step(simulation: Simulation, value: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T,) sum of a value (M,) of the finished requests, in the interval between decisions in which each finished."""
    records = simulation.records(0)
    done = records.status == FINISHED
    step = np.searchsorted(records.arrival_s[1:], records.finish_s[done], side="left")  # the first decision not before it
    return np.bincount(step, weights=value[done], minlength=len(records.status))


@examples(100)
@given(seeds)
def test_realised_qos_is_paid_in_the_interval_of_the_completion(seed: int) -> None:
    simulation, rewards = played(seed, Reward())
    np.testing.assert_array_equal(rewards, per_step(simulation, simulation.records(0).qos))
    assert rewards.sum() == simulation.records(0).qos.sum()


@examples(100)
@given(seeds)
def test_each_late_completion_costs_the_violation(seed: int) -> None:
    simulation, rewards = played(seed, only(violation=0.75))
    np.testing.assert_array_equal(rewards, -0.75 * per_step(simulation, simulation.records(0).late.astype(float)))


@examples(100)
@given(seeds)
def test_each_request_turned_away_costs_the_drop_at_once(seed: int) -> None:
    simulation, rewards = played(seed, only(drop=0.25))
    np.testing.assert_array_equal(rewards, -0.25 * np.isin(simulation.records(0).status, (DROPPED, REJECTED)))


@examples(50)
@given(seeds)
def test_the_marginal_term_is_the_counterfactual_of_the_action_taken(seed: int) -> None:
    world = random_world(np.random.default_rng(seed), reward=only(marginal_qos=2.0), observation=Observation(counterfactual=True))
    simulation = simulation_of(world[0], world[1])
    for action in world[2]:
        marginal = simulation.marginal[0].copy()
        assert simulation.step(np.array([action]))[0] == 2 * marginal[action]
    _, without_table = played(seed, only(marginal_qos=2.0))
    _, with_table = played(seed, only(marginal_qos=2.0), counterfactual=True)
    np.testing.assert_array_equal(without_table, with_table)


def pushed(scenario: Scenario, episode: Episode, twin: Twin, e: int, r: int) -> list[tuple[float, float]]:
    """``l_now,j + D_j`` and ``s_j`` of each running request j, as in the formula of P_t: the sums written out."""
    engine = scenario.experts[e].engine
    k1, k2 = (ms * engine.overhead * 1e-3 for ms in (engine.a_ms, engine.c_ms))
    now_s, p_i, d_i = episode.arrival_s[r], int(episode.prompt[r]), int(episode.output[r, e])
    terms = []
    for request in twin.decoding:  # the others have no token at present: no latency per token
        j, o_j, d_j = twin.number[request], request.generated, request.output
        slowed = k1 * p_i + k2 * sum(p_i + k for k in range(1, min(d_j - o_j, d_i)))
        terms.append(((now_s - episode.arrival_s[j]) / o_j + slowed / d_j, float(episode.score[j, e])))
    return terms


@examples(60)
@given(seeds)
def test_the_papers_penalty_is_its_formula(seed: int) -> None:
    check_impact(seed)


def check_impact(seed: int) -> int:
    """Compare the penalties of a random decision, for each expert and a drop; how many requests could have been pushed.

    The SLO, on which nothing else depends, is set to just under and just over what one of them comes to.
    """
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, reward=only(paper_impact=0.5))
    count, n = int(rng.integers(1, REQUESTS)), scenario.n_experts
    twins = twins_at(scenario, episode, actions, count, float(episode.arrival_s[count]))
    fits = episode.prompt[count] < max(expert.engine.max_model_len for expert in scenario.experts)  # else it pushes nobody
    terms = [pushed(scenario, episode, twin, e, count) if fits else [] for e, twin in enumerate(twins)] + [[]]
    values = [value for mine in terms for value, _ in mine]
    for factor in (1 - 1e-6, 1 + 1e-6):
        slo_s = factor * (rng.permutation(values)[0] if values else 0.05)
        expected = [sum(score for value, score in mine if value > slo_s) for mine in terms]
        simulation = simulation_of(replace(scenario, slo_s_per_token=float(slo_s)), *[episode] * (n + 1))
        play(simulation, actions[:count])
        np.testing.assert_allclose(simulation.step(np.arange(n + 1)), -0.5 * np.array(expected), rtol=1e-12)
    return len(values)


def test_random_worlds_have_somebody_to_push() -> None:
    assert np.mean([check_impact(seed) > 0 for seed in range(40)]) > 0.5


@examples(50)
@given(seeds)
def test_the_reward_is_the_weighted_sum_of_its_terms(seed: int) -> None:
    weights = {"realised_qos": 0.5, "violation": 2.0, "paper_impact": 0.25, "drop": 4.0, "marginal_qos": -1.0}
    terms = sum(played(seed, only(**{name: weight}))[1] for name, weight in weights.items())
    np.testing.assert_allclose(played(seed, Reward(**weights))[1], terms, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("preset", ["edge6", "paper3", "tight"])
def test_the_rewards_of_a_drawn_episode_sum_to_its_qos_exactly(preset: str) -> None:
    """Whatever is drawn, scores lie on a grid where sums are exact."""
    scenario = tight(small("edge6", 300)) if preset == "tight" else small(preset, 300, reward=Reward())
    simulation = Simulation(scenario, 4)
    simulation.start_all([1, 2, 3, 4])
    rng = np.random.default_rng(0)
    total = np.zeros(4)
    for _ in range(300):
        total += simulation.step(rng.integers(scenario.n_experts, size=4))
    qos = np.array([simulation.records(b).qos.sum() for b in range(4)])
    np.testing.assert_array_equal(total, qos)
    assert (qos > 0).all()
