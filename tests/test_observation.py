"""The router's view: what its features say, that nothing true leaks into it, and what late telemetry shows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from rllib_envs.observation import PACE_GAINS
from rllib_envs.scenario import Faults, Observation, Scenario
from rllib_envs.sim.profile import BLOCK_TOKENS
from rllib_envs.sim.reference import Request
from rllib_envs.sim.rows import CLUSTER_FEATURES, EXPERT_FEATURES, REQUEST_FEATURES
from rllib_envs.sim.state import REJECTED, TOO_LONG
from rllib_envs.sim.whatif import OVERRUN
from rllib_envs.simulation import Simulation
from rllib_envs.workload.episode import Episode
from tests.draws import examples
from tests.worlds import (
    REQUESTS,
    Twin,
    assert_same,
    begin,
    play,
    random_episode,
    random_scores,
    random_world,
    scenario_of,
    seeds,
    simulation_of,
    small,
    twins_at,
)

SLOTS = Observation(running_slots=3, waiting_slots=2, whatif=True)
CALIBRATED = replace(SLOTS, calibrate=True)


def column(name: str) -> int:
    return EXPERT_FEATURES.index(name)


def request_row(
    scenario: Scenario, episode: Episode, r: int, e: int, request: Request, now_s: float, completing: bool
) -> dict[str, float]:
    """REQUEST_FEATURES of a request as their comments say, before scaling."""
    engine = scenario.experts[e].engine
    told = float(episode.predicted_tokens[r, e])
    since_slo = (now_s - episode.arrival_s[r]) / scenario.slo_s_per_token
    least = request.generated + max(1, math.floor(OVERRUN * request.generated))
    length = min(max(math.floor(told + 0.5), least), engine.max_model_len - request.prompt)
    return {
        "prompt": request.prompt / 1024,
        "predicted_score": float(episode.predicted_score[r, e]),
        "predicted_length": told / 256,
        "generated": request.generated / 256,
        "kv_share": 0 if completing else request.computed / (engine.usable_blocks * BLOCK_TOKENS),
        "budget_used": since_slo / told,
        "latency_so_far": min(since_slo / max(request.generated, 1) / 4, 4),
        "remaining": max(length - request.generated, 1) / 256,
        "length": max(length, request.generated + 1),
    }


def expert_row(scenario: Scenario, twin: Twin, e: int, rows: list[dict[str, float]]) -> dict[str, float]:
    """The features of an expert's load, as their comments say, from the rows of all its requests."""
    engine, slots = scenario.experts[e].engine, scenario.observation
    running, decoding = len(twin.engine.running), twin.decoding
    step_s = engine.iteration_s(len(decoding), sum(request.computed for request in decoding))
    step_slo = step_s / scenario.slo_s_per_token
    used = [row["budget_used"] for row in rows]
    since_slo = [row["budget_used"] * row["predicted_length"] * 256 for row in rows]
    beyond = rows[slots.running_slots : running] + rows[running + slots.waiting_slots :]
    return {
        "running": running / 32,
        "waiting": len(twin.engine.waiting) / 32,
        "kv_used": sum(len(request.blocks) for request in twin.engine.running) / engine.usable_blocks,
        "kv_reserved": sum(1024 * row["prompt"] + row["length"] for row in rows) / (engine.usable_blocks * BLOCK_TOKENS),
        "step_time": step_slo,
        "prefill_backlog": sum(r.tokens - r.computed for r in twin.present if r not in decoding) / 2048,
        "decode_backlog": sum(row["remaining"] for row in rows) / 4,
        "mean_budget_used": float(np.mean(used)) if used else 0,
        "max_budget_used": max(used, default=0),
        "score_present": sum(row["predicted_score"] for row in rows) / 8,
        "score_at_risk": sum(
            row["predicted_score"]
            for row, since in zip(rows, since_slo, strict=True)
            if since + 256 * row["remaining"] * step_slo > row["length"]
        )
        / 8,
        "running_beyond": max(running - slots.running_slots, 0) / 32,
        "waiting_beyond": max(len(twin.engine.waiting) - slots.waiting_slots, 0) / 32,
        "decode_backlog_beyond": sum(row["remaining"] for row in beyond) / 4,
    }


@examples(200)
@given(seeds)
def test_features_are_what_their_comments_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, observation=SLOTS)
    count = int(rng.integers(0, REQUESTS))
    simulation = simulation_of(scenario, episode)
    play(simulation, actions[:count])
    view, now_s = simulation.view, simulation.now_s[0]
    for e, twin in enumerate(twins_at(scenario, episode, actions, count, now_s)):
        rows = [request_row(scenario, episode, twin.number[q], e, q, now_s, twin.completes(q)) for q in twin.present]
        expected = expert_row(scenario, twin, e, rows)
        got = dict(zip(EXPERT_FEATURES, view.experts[0, e].tolist(), strict=True))
        assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-5, abs=1e-6)
        running = len(twin.engine.running)
        for shown, mask, mine in (
            (view.running, view.running_mask, rows[:running]),
            (view.waiting, view.waiting_mask, rows[running:]),
        ):
            slots = mask.shape[2]
            table = np.zeros((slots, len(REQUEST_FEATURES)))
            for slot, row in enumerate(mine[:slots]):
                table[slot] = [row[name] for name in REQUEST_FEATURES]
            np.testing.assert_allclose(shown[0, e], table, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(mask[0, e], np.arange(slots) < len(mine))
        prompt, engine = episode.prompt[count], scenario.experts[e].engine
        arrived = [prompt / 1024, episode.predicted_score[count, e], episode.predicted_tokens[count, e] / 256]
        np.testing.assert_allclose(view.arrived[0, e], arrived, rtol=1e-6)
        open_ = len(twin.engine.waiting) < engine.max_waiting and prompt < engine.max_model_len
        assert view.action_mask[0, e] == open_
    assert view.action_mask[0, -1] == 1


def test_the_engines_own_columns_do_not_change_and_are_what_the_router_was_told() -> None:
    told = scenario_of([e.engine for e in small("edge6").experts], slo_s=0.06)
    rng = np.random.default_rng(0)
    episode = random_episode(told, rng)
    slower = replace(episode, engines=tuple(replace(engine, overhead=2.0) for engine in episode.engines))
    simulation = simulation_of(told, episode, slower)
    static = slice(column("base_time"), None)
    first = simulation.view.experts[:, :, static].copy()
    play(simulation, rng.integers(0, 7, REQUESTS))
    np.testing.assert_array_equal(simulation.view.experts[:, :, static], first)
    np.testing.assert_array_equal(first[0], first[1])
    for e, expert in enumerate(told.experts):
        engine = expert.engine
        one, none = engine.iteration_s(1, 0), engine.iteration_s(0, 0)
        beyond = engine.n0_tokens + 1024
        prompt_s = replace(engine, q_ms=0).iteration_s(0, 0, ((beyond, 0),)) - none
        capacity = engine.usable_blocks * BLOCK_TOKENS
        expected = {
            "base_time": one / 0.06,
            "sequence_time": 32 * (one - none) / 0.06,
            "context_time": (engine.iteration_s(0, 16384) - none) / 0.06,
            "prefill_time": prompt_s / 0.06,
            "kv_capacity": math.log2(capacity / 16384) / 4,
            "max_running": math.log2(engine.max_num_seqs) / 8,
        }
        got = dict(zip(EXPERT_FEATURES, simulation.view.experts[0, e].tolist(), strict=True))
        assert {name: got[name] for name in expected} == pytest.approx(expected, rel=1e-5)


def asked_of_engines_s(scenario: Scenario, episode: Episode, r: int) -> float:
    """What request r asks of an engine, in the mean over experts: the time that a decoding sequence adds to each iteration, for
    as many iterations as it has tokens, its context growing by one in each; and its prefill."""
    prompt, asked_s = int(episode.prompt[r]), []
    if all(prompt >= engine.max_model_len for engine in episode.nominal):
        return 0.0  # it goes nowhere
    for e, engine in enumerate(episode.nominal):
        tokens = float(episode.predicted_tokens[r, e])
        context = tokens * prompt + tokens**2 / 2
        asked_s.append(engine.overhead * (engine.b_ms * tokens + engine.c_ms * context + engine.a_ms * prompt) / 1000)
    return float(np.mean(asked_s))


@examples(50)
@given(seeds)
def test_the_cluster_is_summed_up(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng)
    count = int(rng.integers(0, REQUESTS))
    simulation = simulation_of(scenario, episode)
    play(simulation, actions[:count])
    got = dict(zip(CLUSTER_FEATURES, simulation.view.cluster[0].tolist(), strict=True))
    experts = simulation.view.experts[0]
    gaps_s = np.diff(episode.arrival_s[: count + 1])
    works_s = [asked_of_engines_s(scenario, episode, r) for r in range(count + 1)]
    for span, gain in zip(("long_run", "recent"), PACE_GAINS, strict=True):
        average_s = 1 / scenario.capacity_rps  # type: ignore[operator]
        for seen, gap_s in enumerate(gaps_s, start=1):
            average_s += max(gain, 1 / (seen + 8)) * (gap_s - average_s)
        assert got[f"log_gap_{span}"] == pytest.approx(math.log(max(average_s, 1e-3)), rel=1e-6)
        work_s = 0.0
        for seen, asked_s in enumerate(works_s, start=1):
            work_s += max(gain, 1 / seen) * (asked_s - work_s)
        load = max(work_s, 1e-6) / max(average_s, 1e-3) / scenario.n_experts
        assert got[f"log_load_{span}"] == pytest.approx(math.log(load), rel=1e-5, abs=1e-5)
    assert got["mean_running"] == pytest.approx(experts[:, column("running")].mean(), rel=1e-6)
    assert got["max_running"] == experts[:, column("running")].max()
    assert got["mean_waiting"] == pytest.approx(experts[:, column("waiting")].mean(), rel=1e-6)
    assert got["mean_kv_reserved"] == pytest.approx(experts[:, column("kv_reserved")].mean(), rel=1e-6)


def with_other_truth(
    episode: Episode, simulation: Simulation, twins: list[Twin], since_s: float, rng: np.random.Generator
) -> Episode:
    """The episode where all that had not ended by ``since_s`` has other true scores and lengths, not below what is there."""
    records = simulation.records(0)
    output, score = episode.output.copy(), random_scores(episode.score.shape, rng)
    open_ = ~(records.finish_s <= since_s) & ~np.isin(records.status, (REJECTED, TOO_LONG))
    output[open_] = (output[open_] + rng.integers(0, 198, output[open_].shape)) % 199 + 1  # others indeed
    score[~open_] = episode.score[~open_]
    for e, twin in enumerate(twins):
        for request in twin.present:
            output[twin.number[request], e] = request.generated + rng.integers(1, 200)
    return replace(episode, output=output, score=score)


@pytest.mark.parametrize("observation", [SLOTS, CALIBRATED], ids=["plain", "calibrated"])
@pytest.mark.parametrize("delay_s", [0.0, 0.07])
@examples(100)
@given(seed=seeds)
def test_nothing_true_leaks_into_the_view(delay_s: float, observation: Observation, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Late telemetry: whether a queue was full meanwhile is known, and depends on the truth; so nobody is turned away.
    scenario, episode, actions = random_world(
        rng,
        observation=observation,
        faults=Faults(telemetry_delay_s=delay_s),
        max_waiting=REQUESTS if delay_s else None,
    )
    count = int(rng.integers(1, REQUESTS))
    simulation = simulation_of(scenario, episode)
    play(simulation, actions[:count])
    since_s = max(simulation.now_s[0] - delay_s, 0.0)
    twins = twins_at(scenario, episode, actions, count, since_s)
    other = simulation_of(scenario, with_other_truth(episode, simulation, twins, since_s, rng))
    play(other, actions[:count])
    assert (other.workload.output != simulation.workload.output).any()
    assert (other.workload.score != simulation.workload.score).any()
    assert_same(simulation.view, other.view)


@pytest.mark.parametrize("delay_s", [0.0, 0.05])
@examples(75)
@given(seed=seeds)
def test_experts_in_another_order_are_seen_in_that_order(delay_s: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    observation = replace(CALIBRATED, counterfactual=True)
    scenario, episode, actions = random_world(rng, observation=observation, faults=Faults(telemetry_delay_s=delay_s))
    n = scenario.n_experts
    order = rng.permutation(n)
    named = ("score", "output", "predicted_score", "predicted_tokens", "predicted_log_sd")
    tables = {name: getattr(episode, name)[:, order] for name in named}
    engines = {name: tuple(getattr(episode, name)[i] for i in order) for name in ("engines", "nominal")}
    turned = replace(episode, **tables, **engines, predicted_log_median=episode.predicted_log_median[order])
    place = np.append(np.argsort(order), n)  # where each expert went; drop stays
    count = int(rng.integers(0, REQUESTS + 1))
    simulation = simulation_of(scenario, episode)
    other = simulation_of(replace(scenario, experts=tuple(scenario.experts[i] for i in order)), turned)
    rewards, rewards_other = play(simulation, actions[:count]), play(other, place[actions[:count]])
    np.testing.assert_array_equal(rewards, rewards_other)
    view = simulation.view._asdict()
    for name, shown in other.view._asdict().items():
        if name == "cluster":  # sums over experts: their order shows in the last bit
            np.testing.assert_allclose(shown, view[name], rtol=1e-6)
        elif name == "demand":
            assert not shown.size
        elif name == "action_mask":
            np.testing.assert_array_equal(shown[:, place], view[name])
        else:
            np.testing.assert_array_equal(shown, view[name][:, order], err_msg=name)
    np.testing.assert_array_equal(other.marginal[:, place], simulation.marginal)


@examples(75)
@given(seeds)
def test_totals_do_not_depend_on_the_slots(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, observation=SLOTS)
    count = int(rng.integers(0, REQUESTS))
    wide = replace(scenario, observation=replace(SLOTS, running_slots=64, waiting_slots=64))
    few, many = simulation_of(scenario, episode), simulation_of(wide, episode)
    play(few, actions[:count])
    play(many, actions[:count])
    beyond = [column(name) for name in EXPERT_FEATURES if name.endswith("_beyond")]
    np.testing.assert_array_equal(np.delete(few.view.experts, beyond, 2), np.delete(many.view.experts, beyond, 2))
    for name in ("arrived", "cluster", "action_mask", "whatif"):
        np.testing.assert_array_equal(getattr(few.view, name), getattr(many.view, name))
    assert not many.view.experts[..., beyond].any()
    remaining = REQUEST_FEATURES.index("remaining")
    hidden = np.zeros(few.view.experts.shape[:2])
    for kind in ("running", "waiting"):
        rows, mask = (getattr(many.view, name) for name in (kind, f"{kind}_mask"))
        slots = getattr(few.view, kind).shape[2]
        np.testing.assert_array_equal(getattr(few.view, kind), rows[:, :, :slots])
        np.testing.assert_array_equal(getattr(few.view, f"{kind}_mask"), mask[:, :, :slots])
        assert (np.diff(mask) <= 0).all()  # no gaps
        assert not rows[mask == 0].any()
        assert (rows[mask == 1][:, REQUEST_FEATURES.index("prompt")] > 0).all()
        np.testing.assert_array_equal(32 * few.view.experts[..., column(f"{kind}_beyond")], mask[:, :, slots:].sum(axis=2))
        hidden += rows[:, :, slots:, remaining].sum(axis=2)
    np.testing.assert_allclose(few.view.experts[..., column("decode_backlog_beyond")], hidden / 4, rtol=1e-6)


@examples(75)
@given(seeds)
def test_the_mask_is_what_an_expert_accepts(seed: int) -> None:
    scenario, episode, actions = random_world(np.random.default_rng(seed))
    simulation = simulation_of(scenario, episode)
    for action in actions:
        allowed = bool(simulation.view.action_mask[0, action])
        simulation.step(np.array([action]))
        step = simulation.steps[0]
        assert step["rejected"] + (step["too_long"] and action < scenario.n_experts) == (not allowed)
    assert simulation.view.action_mask[0].tolist() == [0.0] * scenario.n_experts + [1.0]  # over: nothing is left to route
    assert not simulation.view.arrived.any()


@examples(50)
@given(seeds)
def test_a_view_is_cleared_of_the_episode_before(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, observation=SLOTS)
    used = simulation_of(scenario, episode)
    play(used, actions[: int(rng.integers(1, REQUESTS + 1))])
    again = random_episode(scenario, rng)
    begin(used, 0, again)
    fresh = simulation_of(scenario, again)
    assert_same(used.view, fresh.view)
    play(used, actions[:20])
    play(fresh, actions[:20])
    assert_same(used.view, fresh.view)
