"""Requests that no expert can hold: a status of their own, whatever the router does, counted apart and free of charge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from rllib_envs.scenario import Observation, Reward, Scenario
from rllib_envs.sim.state import DROPPED, PENDING, REJECTED, TOO_LONG
from rllib_envs.workload.episode import Episode
from tests.draws import examples
from tests.worlds import random_world, scenario_of, seeds, simulation_of, some_requests
from tuning.metrics.episode import mean_qos, request_metrics, routing_shares

REWARD = Reward(realised_qos=1.0, violation=0.5, paper_impact=0.5, drop=1.0, marginal_qos=0.25)


def limit(scenario: Scenario) -> int:
    """The shortest prompt that is too long."""
    return max(expert.engine.max_model_len for expert in scenario.experts)


def with_long_prompts(seed: int, **options: object) -> tuple[Scenario, Episode, np.ndarray, np.ndarray]:
    """A random world, some of whose prompts, any of them, fit nowhere; the last mask (M,) says which."""
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, **options)  # type: ignore[arg-type]
    prompt = episode.prompt.copy()
    prompt[rng.random(prompt.size) < 0.3] = limit(scenario) + rng.integers(0, 50)
    return scenario, replace(episode, prompt=prompt), actions, prompt >= limit(scenario)


@examples(60)
@given(seeds)
def test_they_are_too_long_whatever_the_router_does_and_cost_nothing(seed: int) -> None:
    scenario, episode, actions, long = with_long_prompts(seed, reward=replace(REWARD, realised_qos=0.0, violation=0.0))
    simulation = simulation_of(scenario, episode)
    for r, action in enumerate(actions):
        reward = simulation.step(np.array([action]))
        step = simulation.steps[0]
        assert step["too_long"] == long[r]
        if long[r]:
            assert (step["dropped"], step["rejected"], reward[0]) == (0, 0, 0)
    records = simulation.records(0)
    np.testing.assert_array_equal(records.status == TOO_LONG, long)
    assert (records.route[long] == scenario.n_experts).all()
    assert not np.isin(records.status, (PENDING,)).any()


@examples(60)
@given(seeds)
def test_without_them_everybody_else_fares_the_same(seed: int) -> None:
    """Times of arrival as they were: the engines never see them."""
    scenario, episode, actions, long = with_long_prompts(seed, observation=Observation(whatif=True, calibrate=True))
    if long.all():
        return
    others = some_requests(episode, ~long)
    (with_them,), (without,) = ([run(scenario, of, acts)] for of, acts in ((episode, actions), (others, actions[~long])))
    for name in ("status", "route", "first_token_s", "finish_s", "preemptions", "qos"):
        np.testing.assert_array_equal(getattr(with_them, name)[~long], getattr(without, name))
    ours, theirs = request_metrics(with_them), request_metrics(without)
    assert ours.pop("too_long_rate") == long.mean()
    assert theirs.pop("too_long_rate") == 0
    assert ours == pytest.approx(theirs, nan_ok=True)
    assert routing_shares(scenario, with_them) == routing_shares(scenario, without)


def run(scenario: Scenario, episode: Episode, actions: np.ndarray):
    """What became of the requests."""
    simulation = simulation_of(scenario, episode)
    for action in actions:
        simulation.step(np.array([action]))
    return simulation.records(0)


def test_where_nothing_fits_no_figure_is_known() -> None:
    rng = np.random.default_rng(1)
    scenario, episode, actions = random_world(rng)
    records = run(scenario, replace(episode, prompt=np.full_like(episode.prompt, limit(scenario))), actions)
    assert np.isnan(mean_qos(records))
    assert np.isnan(routing_shares(scenario, records)).all()
    assert request_metrics(records)["too_long_rate"] == 1


def test_one_that_a_single_expert_could_hold_is_the_routers_to_send() -> None:
    rng = np.random.default_rng(2)
    scenario, episode, _ = random_world(rng)
    small, large = (replace(scenario.experts[0].engine, max_model_len=n, kv_tokens=4096, max_waiting=200) for n in (100, 1000))
    scenario = scenario_of([small, large])
    episode = replace(episode, prompt=np.full_like(episode.prompt, 500), engines=(small, large), nominal=(small, large))
    tables = ("score", "output", "predicted_score", "predicted_tokens", "predicted_log_sd")
    columns = {name: getattr(episode, name)[:, :2] for name in tables}
    episode = replace(episode, **columns, predicted_log_median=episode.predicted_log_median[:2])
    status = run(scenario, episode, np.arange(episode.prompt.size) % 3).status
    assert (status[0::3] == REJECTED).all()
    assert not np.isin(status[1::3], (DROPPED, TOO_LONG)).any()
    assert (status[2::3] == DROPPED).all()
