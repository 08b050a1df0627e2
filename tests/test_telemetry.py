"""What the router sees when telemetry is late: the state of then, and what it has sent since."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from rllib_envs.scenario import Observation
from rllib_envs.sim.rows import EXPERT_FEATURES, REQUEST_FEATURES
from rllib_envs.view import View
from tests.draws import examples
from tests.worlds import (
    REQUESTS,
    play,
    random_world,
    seeds,
    simulation_of,
)

SLOTS = Observation(running_slots=3, waiting_slots=2, whatif=True)
ELAPSED = ("mean_budget_used", "max_budget_used", "score_at_risk", "budget_used", "latency_so_far")


def column(name: str) -> int:
    return EXPERT_FEATURES.index(name)


@examples(75)
@given(seeds)
def test_telemetry_that_is_hardly_late_shows_the_present(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, observation=SLOTS)
    count = int(rng.integers(0, REQUESTS))
    late = replace(episode, telemetry_delay_s=1e-9)
    one, other = simulation_of(scenario, episode), simulation_of(scenario, late)
    play(one, actions[:count])
    play(other, actions[:count])
    for name, a, b in zip(View._fields, one.view, other.view, strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6, err_msg=name)


@examples(75)
@given(seeds)
def test_late_telemetry_shows_what_there_was_then(seed: int) -> None:
    """With nothing sent since, it is the view of somebody who came then, but for the time that has passed."""
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, observation=SLOTS)
    delay_s = float(rng.uniform(0.001, 0.2))
    count = int(rng.integers(1, REQUESTS))
    then_s, later_s = episode.arrival_s.copy(), episode.arrival_s.copy()
    then_s[count:] += 1e-5  # not at the very instant of another arrival: rounding would decide
    later_s[count:] += 1e-5 + delay_s  # nobody comes in the time that is not seen
    then = simulation_of(scenario, replace(episode, arrival_s=then_s))
    later = simulation_of(scenario, replace(episode, arrival_s=later_s, telemetry_delay_s=delay_s))
    play(later, actions[:count])
    play(then, actions[:count])
    for name in ("running_mask", "waiting_mask", "action_mask", "arrived"):
        np.testing.assert_array_equal(getattr(later.view, name), getattr(then.view, name))
    timeless = [column(name) for name in EXPERT_FEATURES if name not in ELAPSED]
    np.testing.assert_allclose(later.view.experts[..., timeless], then.view.experts[..., timeless], rtol=1e-6, atol=1e-6)
    for kind in ("running", "waiting"):
        now, before = getattr(later.view, kind), getattr(then.view, kind)
        timeless = [i for i, name in enumerate(REQUEST_FEATURES) if name not in ELAPSED]
        np.testing.assert_allclose(now[..., timeless], before[..., timeless], rtol=1e-6)
        passed = delay_s / scenario.slo_s_per_token * getattr(then.view, f"{kind}_mask")
        used, told = REQUEST_FEATURES.index("budget_used"), REQUEST_FEATURES.index("predicted_length")
        budget = 256 * now[..., told] * (now[..., used] - before[..., used])
        np.testing.assert_allclose(budget, passed, rtol=1e-3, atol=2e-3)


@examples(75)
@given(seeds)
def test_what_was_sent_since_is_shown_at_the_end_of_the_queue(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, observation=replace(SLOTS, waiting_slots=64), max_waiting=REQUESTS)
    delay_s = 0.05
    count = int(rng.integers(1, REQUESTS))
    at_s = episode.arrival_s.copy()
    at_s[count:] = at_s[count - 1] + 0.01  # the last request was sent a moment ago
    prompt = np.minimum(episode.prompt, min(expert.engine.max_model_len for expert in scenario.experts) - 1).astype(np.int32)
    episode = replace(episode, arrival_s=at_s, prompt=prompt, telemetry_delay_s=delay_s)
    e = int(rng.integers(scenario.n_experts))
    actions[count - 1] = e
    sent, dropped = simulation_of(scenario, episode), simulation_of(scenario, episode)
    play(sent, actions[:count])
    play(dropped, np.append(actions[: count - 1], scenario.n_experts))
    others = np.arange(scenario.n_experts) != e
    for name in ("experts", "running", "running_mask", "waiting", "waiting_mask", "whatif"):
        np.testing.assert_array_equal(getattr(sent.view, name)[:, others], getattr(dropped.view, name)[:, others])
    np.testing.assert_array_equal(sent.view.running, dropped.view.running)
    place = int(dropped.view.waiting_mask[0, e].sum())
    assert sent.view.waiting_mask[0, e].sum() == place + 1
    row = dict(zip(REQUEST_FEATURES, sent.view.waiting[0, e, place].tolist(), strict=True))
    assert row["predicted_score"] == episode.predicted_score[count - 1, e]
    assert row["prompt"] == pytest.approx(prompt[count - 1] / 1024)
    assert (row["generated"], row["kv_share"]) == (0, 0)
    change = sent.view.experts[0, e] - dropped.view.experts[0, e]
    assert change[column("waiting")] == pytest.approx(1 / 32)
    assert change[column("prefill_backlog")] == pytest.approx(row["prompt"] / 2, abs=1e-6)
    assert change[column("decode_backlog")] == pytest.approx(row["remaining"] / 4, abs=1e-6)
    assert change[column("score_present")] == pytest.approx(row["predicted_score"] / 8, abs=1e-6)
    for name in ("running", "kv_used", "step_time"):
        assert change[column(name)] == 0
