"""What a gateway learns of its engines' times from tokens, and what it predicts of later requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from gateway.later_prompts import LaterPrompts
from gateway.live import LiveCluster, Told
from gateway.simulated import SimulatedEngines
from rllib_envs.capacity import capacity_rps
from rllib_envs.scenario import Observation, Scenario, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.service_terms import terms_of
from rllib_envs.sim.profile import EngineProfile
from rllib_envs.workload.episode import draw_episode

pytestmark = pytest.mark.slow

Learned = tuple[np.ndarray, np.ndarray]
PREFILL = ("a_ms", "q_ms", "c_mixed_ms", "c0_mixed_ms")


def slower_at(names: tuple[str, ...], factor: float) -> Callable[[EngineProfile], EngineProfile]:
    return lambda engine: replace(engine, **{name: factor * getattr(engine, name) for name in names})


def play(
    scenario: Scenario,
    actual: Callable[[EngineProfile], EngineProfile],
    look: Callable[[LiveCluster, Told, int, int], None] = lambda live, told, r, expert: None,
    clock: Callable[[float], float] = lambda time_s: time_s,
) -> tuple[LiveCluster, SimulatedEngines, float]:
    """Requests by turns to engines that are not as their profiles say; ``clock``: what the gateway's clock shows."""
    scenario = replace(scenario, observation=Observation(whatif=True, calibrate=True))
    episode = draw_episode(scenario, capacity_rps(scenario), 3)
    episode = replace(episode, engines=tuple(map(actual, episode.engines)))
    engines, live = SimulatedEngines(episode, terms_of(scenario)), LiveCluster(scenario, capacity=1024)
    everywhere = np.ones(scenario.n_experts, np.bool_)
    end_s = 0.0

    def tell(until_s: float) -> None:
        nonlocal end_s
        for iteration in engines.run(until_s):
            end_s = clock(iteration.time_s)
            for r in iteration.got:
                live.ledger.streamed(str(r), 1, end_s)
            for r in iteration.ended:
                live.ledger.finished(str(r), end_s)

    for r, time_s in enumerate(episode.arrival_s.tolist()):
        tell(time_s)
        told = Told(episode.predicted_score[r], episode.predicted_tokens[r], episode.predicted_log_sd[r])
        row = live.observe(int(episode.prompt[r]), told, 0, everywhere, clock(time_s))
        expert = r % scenario.n_experts
        look(live, told, r, expert)
        assert engines.send(r, expert)
        live.send(str(r), row, expert, int(episode.prompt[r]), told, everywhere)
    tell(np.inf)
    return live, engines, end_s


def learned(live: LiveCluster) -> Learned:
    """(N,) logs of decoding and of prefill, NaN where there are few samples."""
    found = live.world.calibration
    return tuple(np.where(x["samples"][0] > 10, x["log"][0], np.nan) for x in (found.steps, found.prefills))  # pyright: ignore


def light(requests: int = 400) -> Scenario:
    return with_workload(load_scenario("edge6"), requests=requests, load="light")


@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_prefill_is_told_apart_from_decoding(factor: float) -> None:
    """Prompts in a prefix cache take less than the profile says, and tokens take as long as before."""
    live, _, _ = play(light(), slower_at(PREFILL, factor))
    decoding, prefill = learned(live)
    assert np.isfinite(decoding).sum() >= 3
    assert np.isfinite(prefill).sum() >= 3
    np.testing.assert_allclose(decoding[np.isfinite(decoding)], 0, atol=0.02)
    np.testing.assert_allclose(prefill[np.isfinite(prefill)], np.log(factor), atol=0.1)
    mine, given = live.world.nominal[0], live.world.calibration.configured[0]
    np.testing.assert_allclose(mine["a_s"] / given["a_s"], np.exp(live.world.calibration.prefills["log"][0]), rtol=0.05)


def test_a_stall_is_not_taken_for_slowness() -> None:
    """Half a minute in which no token comes from anywhere, and all goes on as before."""
    at_s, logs = 10.0, list[Learned]()
    play(light(), lambda engine: engine, lambda live, *_: logs.append(learned(live)), lambda t: t + 30.0 * (t > at_s))
    worst = [np.nanmax(np.abs(kind)) for one in logs[-200:] for kind in one if np.isfinite(kind).any()]
    assert max(worst) < 0.4  # a ratio of two half-way at first, less with more samples; the stall is hundreds of iterations
    assert np.nanmax(np.abs(logs[-1])) < 0.05


def test_what_was_learned_of_idle_engines_is_forgotten() -> None:
    """By half in each minute after the first: an expert that is avoided as slow is tried again."""
    live, _, end_s = play(light(), slower_at(("c0_ms", "b_ms", "c_ms", *PREFILL), 1.5))
    told = Told(np.full(6, 0.5), np.full(6, 100.0), np.full(6, 0.5))
    seen: list[Learned] = []
    for minutes in (0.0, 0.5, 1.0, 2.0, 3.0, 3.5, 4.0):
        live.observe(100, told, 0, np.ones(6, np.bool_), end_s + 0.001 + 60 * minutes)
        seen.append(learned(live))
    for kind in range(2):
        first = seen[0][kind]
        assert np.isfinite(first).sum() >= 3
        for logs, kept in zip(seen, (1, 1, 1, 1 / 2, 1 / 4, 2**-2.5, 1 / 8), strict=True):
            np.testing.assert_allclose(logs[kind], kept * first, rtol=1e-9)


def test_times_per_token_allow_for_the_prompts_of_later_requests() -> None:
    """Where prompts take long, roll-outs without later requests are far too short; with their share the mean is right."""
    slow = slower_at(("a_ms",), 20.0)
    scenario = with_workload(load_scenario("edge6"), requests=500, load="moderate")
    scenario = replace(scenario, experts=tuple(replace(x, engine=slow(x.engine)) for x in scenario.experts[2:4]))
    rolled, predicted = list[float](), list[float]()

    def look(live: LiveCluster, told: Told, r: int, expert: int) -> None:
        own_s = live.world.scratch.own_s[expert]
        tokens = max(float(np.floor(live.expected_tokens(told)[expert] + 0.5)) - 1, 1)
        rolled.append((own_s[1] - own_s[0]) / tokens)
        predicted.append(float(live.predicted_tpot_s(told)[expert]))

    _, engines, _ = play(scenario, lambda engine: engine, look)
    record, output = engines.state.records[0], engines.state.requests["output"][0]
    several = (output > 1) & (np.arange(output.size) > 50)
    measured = ((record["finish_s"] - record["first_token_s"]) / np.maximum(output - 1, 1))[several].mean()
    assert measured > 1.4 * np.array(rolled)[several].mean()
    assert measured == pytest.approx(np.array(predicted)[several].mean(), rel=0.25)


def test_the_share_of_later_prompts_is_that_of_a_steady_stream() -> None:
    later = LaterPrompts(2, 1)
    assert (later.share(5.0) == 0).all()
    for i in range(400):
        later.note(0, 0.05, 10 + 0.25 * i)
    np.testing.assert_allclose(later.share(110.0), [0.2, 0.0], rtol=0.03)
    np.testing.assert_allclose(later.share(120.0), later.share(110.0) / np.e, rtol=0.01)
    for i in range(400):
        later.note(1, 10.0, 120 + 0.25 * i)
    assert later.share(220.0)[1] == 0.9
