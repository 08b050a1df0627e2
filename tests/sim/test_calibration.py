"""Learning how far the figures are off: the right ratios, from what telemetry shows and nothing else, put to use everywhere."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllib_envs.decision import write_observation
from rllib_envs.scenario import Faults, Observation, Predictions, Scenario
from rllib_envs.sim.calibration import AVERAGE, STEP_FLOOR, STEP_PRIOR, note_step
from rllib_envs.sim.offsets import with_odds
from rllib_envs.sim.rows import ARRIVED_FEATURES, EXPERT_FEATURES
from rllib_envs.sim.state import ENGINE
from rllib_envs.simulation import Simulation
from rllib_envs.workload.episode import Episode, draw_episode
from tests.draws import examples
from tests.worlds import (
    REQUESTS,
    assert_same,
    begin,
    play,
    random_engine,
    random_episode,
    random_world,
    scenario_of,
    seeds,
    simulation_of,
    small,
)

WATCHED = Observation(whatif=True, counterfactual=True, running_slots=3, waiting_slots=2)
CALIBRATED = replace(WATCHED, calibrate=True, judged_share=0.5)
DRIFTS = [EXPERT_FEATURES.index(name) for name in ("length_drift", "step_drift")]
TIMES = ("c0_s", "b_s", "c_s", "a_s", "q_s", "c_mixed_s", "c0_mixed_s")
OVER = -1
late_or_not = pytest.mark.parametrize("delay_s", [0.0, 0.07])

World = tuple[Scenario, Episode, np.ndarray]


def faulty_world(rng: np.random.Generator, delay_s: float) -> World:
    """A random world whose engines are not what the router was told, coefficient by coefficient."""
    scenario, episode, actions = random_world(rng, observation=CALIBRATED, faults=Faults(telemetry_delay_s=delay_s))
    engines = tuple(
        replace(engine, c0_ms=engine.c0_ms * rng.uniform(0.5, 2), b_ms=engine.b_ms * rng.uniform(0.5, 2), c_ms=engine.c_ms * 1.4)
        for engine in episode.engines
    )
    return scenario, replace(episode, engines=engines), actions


def shown(simulation: Simulation, delay_s: float) -> int:
    """How many requests have finished as far as telemetry shows.

    In some worlds none has, even at the end: each is dropped or turned away, or only the last to finish was let in.
    """
    return np.count_nonzero(simulation.records(0).finish_s <= max(simulation.now_s[0] - delay_s, 0.0))


def test_random_worlds_show_completions() -> None:
    played = []
    for seed in range(40):
        scenario, episode, actions = faulty_world(np.random.default_rng(seed), 0.07)
        simulation = simulation_of(scenario, episode)
        play(simulation, actions)
        played.append(shown(simulation, 0.07))
    assert np.mean(np.array(played) > 0) > 0.8


def length_logs(simulation: Simulation) -> np.ndarray:
    """(B, N) the learned offsets of log lengths."""
    lengths = simulation.world.calibration.lengths["mean"]
    return lengths[:, -1:] + lengths[:, :-1]


def score_logits(simulation: Simulation) -> np.ndarray:
    """(B, N) the learned offsets of logits."""
    scores = simulation.world.calibration.scores["mean"]
    return scores[:, -1:] + scores[:, :-1]


@given(st.lists(st.floats(0.2, 5), min_size=1, max_size=120))
def test_an_average_starts_as_a_shrunk_mean_and_goes_on_as_a_moving_one(ratios: list[float]) -> None:
    average = np.zeros(1, AVERAGE)[0]
    logs = np.log(ratios)
    for k, ratio in enumerate(ratios, start=1):
        before = average["log"]
        note_step(average, 100.0 * ratio, 100.0)
        if STEP_PRIOR + k <= 1 / STEP_FLOOR:
            assert average["log"] == pytest.approx(logs[:k].sum() / (STEP_PRIOR + k), abs=1e-12)
        else:
            assert average["log"] == pytest.approx((1 - STEP_FLOOR) * before + STEP_FLOOR * logs[k - 1], abs=1e-12)


@late_or_not
@examples(40)
@given(seed=seeds)
def test_right_engine_figures_and_unjudged_scores_stay_as_they_are_to_the_last_bit(delay_s: float, seed: int) -> None:
    observation = replace(CALIBRATED, judged_share=0.0)
    scenario, episode, actions = random_world(
        np.random.default_rng(seed), observation=observation, faults=Faults(telemetry_delay_s=delay_s)
    )
    off = simulation_of(replace(scenario, observation=WATCHED), episode)
    on = simulation_of(scenario, episode)
    told = on.world.nominal.copy()
    score = ARRIVED_FEATURES.index("predicted_score")
    for action in actions:
        play(off, action[None])
        play(on, action[None])
        np.testing.assert_array_equal(off.view.arrived[..., score], on.view.arrived[..., score])
        np.testing.assert_array_equal(
            off.view.experts[..., EXPERT_FEATURES.index("score_present")],
            on.view.experts[..., EXPERT_FEATURES.index("score_present")],
        )
        np.testing.assert_array_equal(off.marginal, on.marginal)
    for name in (*TIMES, "score_odds"):
        np.testing.assert_array_equal(on.world.nominal[name], told[name])
    assert not on.world.calibration.steps["log"].any()
    assert not score_logits(on).any()


@late_or_not
@examples(40)
@given(seed=seeds)
def test_off_nothing_is_learnt_and_on_only_the_view_changes(delay_s: float, seed: int) -> None:
    scenario, episode, actions = faulty_world(np.random.default_rng(seed), delay_s)
    off = simulation_of(replace(scenario, observation=WATCHED), episode)
    on = simulation_of(scenario, episode)
    told = off.world.nominal.copy()
    np.testing.assert_array_equal(play(off, actions), play(on, actions))
    for ours, theirs in zip(off.state, on.state, strict=True):
        assert ours is theirs is None or ours.tobytes() == theirs.tobytes()
    np.testing.assert_array_equal(off.marginal, on.marginal)
    assert off.world.nominal.tobytes() == told.tobytes()
    assert (told["length_factor"] == 1).all()
    assert not off.world.calibration.steps["samples"].any()
    assert not off.world.calibration.counted.any()
    assert not off.view.experts[..., DRIFTS].any()
    assert (on.world.calibration.counted == OVER).sum() == shown(off, delay_s)


@late_or_not
@examples(60)
@given(seed=seeds)
def test_nothing_is_learned_from_what_telemetry_does_not_show(delay_s: float, seed: int) -> None:
    """Longer answers of those that have not finished, other scores of these and of those that nobody judges."""
    rng = np.random.default_rng(seed)
    scenario, episode, actions = faulty_world(rng, delay_s)
    count = int(rng.integers(1, REQUESTS))
    simulation = simulation_of(scenario, episode)
    play(simulation, actions[:count])
    finish_s = simulation.records(0).finish_s
    view_s = max(simulation.now_s[0] - delay_s, 0.0)
    hidden = np.where(count < REQUESTS, ~(finish_s <= view_s), False)
    output, score = episode.output.copy(), episode.score.copy()
    output[hidden] += rng.integers(1, 50, output[hidden].shape, np.int32)
    score[hidden | ~episode.judged] = 1 - score[hidden | ~episode.judged]
    other = simulation_of(scenario, replace(episode, output=output, score=score))
    play(other, actions[:count])
    for one, another in zip(simulation.world.calibration, other.world.calibration, strict=True):
        np.testing.assert_array_equal(one, another)


@late_or_not
@examples(40)
@given(seed=seeds)
def test_each_answer_that_is_shown_counts_once_whatever_the_looks(delay_s: float, seed: int) -> None:
    scenario, episode, actions = faulty_world(np.random.default_rng(seed), delay_s)
    simulation = simulation_of(scenario, episode)
    for action in actions:
        play(simulation, action[None])
        calibration = simulation.world.calibration
        finished = simulation.records(0).finish_s <= calibration.seen_s[0].max()
        np.testing.assert_array_equal(calibration.counted[0] == OVER, finished)
    assert (simulation.world.calibration.counted >= OVER).all()


@late_or_not
@examples(40)
@given(seed=seeds)
def test_a_factor_of_all_times_is_learnt_as_it_is(delay_s: float, seed: int) -> None:
    """Every sample is exactly the factor, whatever the batch: the average is a matter of their number alone."""
    scenario, episode, actions = random_world(
        np.random.default_rng(seed), observation=CALIBRATED, faults=Faults(telemetry_delay_s=delay_s)
    )
    episode = replace(episode, engines=tuple(replace(engine, overhead=1.3) for engine in episode.engines))
    simulation = simulation_of(scenario, episode)
    play(simulation, actions)
    learnt = simulation.world.calibration.steps[0]
    k = learnt["samples"]
    left = np.where(
        k <= 1 / STEP_FLOOR - STEP_PRIOR,
        STEP_PRIOR / (STEP_PRIOR + k),
        STEP_PRIOR * STEP_FLOOR * (1 - STEP_FLOOR) ** (k - (1 / STEP_FLOOR - STEP_PRIOR)),
    )
    np.testing.assert_allclose(learnt["log"], math.log(1.3) * (1 - left), rtol=1e-9)
    assert (k < REQUESTS + 1).all()


def test_an_iteration_counts_when_it_is_over() -> None:
    """Prefill until 10 ms, then a token every 10 ms; looks at 5 ms, in the first token's iteration, and in the second's."""
    engine = replace(random_engine(np.random.default_rng(0)), c0_ms=10, b_ms=0, c_ms=0, a_ms=0, q_ms=0, c_mixed_ms=0)
    engine = replace(engine, max_model_len=16, max_num_batched_tokens=16, max_num_seqs=1, handoff_s=0.0)
    scenario = scenario_of([engine, engine], observation=CALIBRATED)
    episode = random_episode(scenario, np.random.default_rng(0), 5)
    ones = np.ones_like(episode.output)
    episode = replace(episode, arrival_s=np.array([0.0, 0.005, 0.015, 0.025, 0.028]), prompt=ones[:, 0], output=10 * ones)
    simulation = simulation_of(scenario, episode)
    samples = []
    for action in (0, 2, 2, 2):  # sent to the first expert; then all are dropped
        play(simulation, np.array([action]))
        samples.append(int(simulation.world.calibration.steps["samples"][0, 0]))
    assert samples == [0, 0, 1, 2]  # at 28 ms it is the same iteration again: a look is a sample


@examples(40)
@given(seeds)
def test_only_decoding_is_timed(seed: int) -> None:
    """Where prefill alone is dearer than told, no iteration that counts is; else the average lies between the errors made."""
    rng = np.random.default_rng(seed)
    scenario, episode, actions = faulty_world(rng, 0.0)
    prefill = tuple(replace(x.engine, a_ms=3 * x.engine.a_ms + 0.5, q_ms=9 * x.engine.q_ms) for x in scenario.experts)
    simulation = simulation_of(scenario, replace(episode, engines=prefill), episode)
    play(simulation, actions)
    learnt = simulation.world.calibration.steps["log"]
    assert not learnt[0].any()
    for true, told, log in zip(simulation.state.engines[1], simulation.world.calibration.configured[1], learnt[1], strict=True):
        errors = [0.0, *(math.log(true[name] / told[name]) for name in TIMES[:3] if told[name] > 0)]
        assert min(errors) - 1e-12 <= log <= max(errors) + 1e-12


def learnt_at_random(scenario: Scenario, clusters: int) -> Simulation:
    """Random decisions, which choose no expert for what is told of it."""
    simulation = Simulation(scenario, clusters)
    simulation.start_all(list(range(clusters)))
    play(simulation, np.random.default_rng(0).integers(scenario.n_experts, size=(scenario.workload.requests - 1, clusters)))
    return simulation


@pytest.mark.parametrize("delay_s", [0.0, 0.5])
def test_the_true_ratios_are_found(delay_s: float) -> None:
    faults = Faults(engine_factor=1.25, engine_expert_log_sd=0.2, telemetry_delay_s=delay_s)
    predictions = Predictions(law="oracle-noise", length_factor=0.6)  # whose median is right but for the factor
    scenario = small("edge6", 500, faults=faults, predictions=predictions, observation=CALIBRATED)
    simulation = learnt_at_random(scenario, 8)
    nominal, true = simulation.world.nominal, simulation.state.engines
    for name in ("c0_s", "b_s", "c_s", "a_s", "q_s"):
        np.testing.assert_allclose(nominal[name], true[name], rtol=0.02)
    np.testing.assert_allclose(
        simulation.view.experts[..., EXPERT_FEATURES.index("base_time")],
        (true["c0_s"] + true["b_s"]) / scenario.slo_s_per_token,
        rtol=0.02,
    )
    logs = simulation.view.experts[..., DRIFTS[0]].mean(axis=1)  # (8,) independent episodes
    assert abs(logs.mean() + math.log(0.6)) < 4.5 * logs.std(ddof=1) / math.sqrt(8) + 0.1  # the prior holds some of it back


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_the_error_of_predicted_scores_is_found_from_the_judged_share(shift: float) -> None:
    scenario = small("edge6", 500, observation=CALIBRATED)
    episode = draw_episode(scenario, 12.0, 1)
    told = with_odds(episode.score, np.float32(math.exp(-shift)))
    simulation = simulation_of(scenario, replace(episode, predicted_score=told))
    play(simulation, np.random.default_rng(0).integers(scenario.n_experts, size=scenario.workload.requests - 1))
    assert score_logits(simulation)[0] == pytest.approx(shift, abs=0.25)


@late_or_not
@examples(40)
@given(seed=seeds)
def test_what_is_learnt_goes_wherever_a_figure_is_used(delay_s: float, seed: int) -> None:
    """A calibrated view is the plain one of a router that was told the corrected figures."""
    rng = np.random.default_rng(seed)
    scenario, episode, actions = faulty_world(rng, delay_s)
    simulation = simulation_of(scenario, episode)
    count = int(rng.integers(1, REQUESTS))
    play(simulation, actions[:count])
    factor = simulation.world.nominal["length_factor"].copy()  # (1, N)
    odds = simulation.world.nominal["score_odds"].copy()
    steps = simulation.world.calibration.steps["log"]
    np.testing.assert_allclose(factor, np.exp(length_logs(simulation)), rtol=1e-6)
    np.testing.assert_allclose(odds, np.exp(score_logits(simulation)), rtol=1e-6)
    for name in TIMES:
        told = simulation.world.calibration.configured[name]
        np.testing.assert_allclose(simulation.world.nominal[name], told * np.exp(steps), rtol=1e-12)
    np.testing.assert_array_equal(simulation.view.experts[..., DRIFTS[0]], length_logs(simulation).astype(np.float32))
    np.testing.assert_array_equal(simulation.view.experts[..., DRIFTS[1]], steps.astype(np.float32))
    other = copy.deepcopy(simulation)
    other.world.nominal["length_factor"] = other.world.nominal["score_odds"] = 1
    other.workload.predicted_tokens[0] *= factor[0]
    other.workload.predicted_score[0] = with_odds(other.workload.predicted_score[0], odds[0])
    sent = actions[:count] < scenario.n_experts
    for state in {id(s): s for s in (other.world.state, other.world.late)}.values():
        state.requests["predicted_tokens"][0, :count][sent] *= factor[0, actions[:count][sent]]
        told = state.requests["predicted_score"][0, :count][sent]
        state.requests["predicted_score"][0, :count][sent] = with_odds(told, odds[0, actions[:count][sent]])
    write_observation(other.world, other.rules._replace(calibrate=False), 0)
    assert_same(simulation.view, other.view)


@late_or_not
@examples(30)
@given(seed=seeds)
def test_looking_twice_teaches_nothing_more(delay_s: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = faulty_world(rng, delay_s)
    simulation = simulation_of(scenario, episode)
    play(simulation, actions[: int(rng.integers(1, REQUESTS))])
    before = [array.tobytes() for array in (*simulation.world.calibration, simulation.world.nominal, *simulation.view)]
    write_observation(simulation.world, simulation.rules, 0)
    after = [array.tobytes() for array in (*simulation.world.calibration, simulation.world.nominal, *simulation.view)]
    assert after == before


@examples(30)
@given(seeds)
def test_each_episode_begins_without_it(seed: int) -> None:
    scenario, episode, actions = faulty_world(np.random.default_rng(seed), 0.0)
    simulation = simulation_of(scenario, episode, episode)
    fresh = simulation_of(scenario, episode)
    play(simulation, actions[:-3])
    kept = [array[1].tobytes() for array in (*simulation.world.calibration, simulation.world.nominal)]
    begin(simulation, 0, episode)
    assert [array[1].tobytes() for array in (*simulation.world.calibration, simulation.world.nominal)] == kept
    for used, new in zip(
        (*simulation.world.calibration, simulation.world.nominal, *simulation.view),
        (*fresh.world.calibration, fresh.world.nominal, *fresh.view),
        strict=True,
    ):
        np.testing.assert_array_equal(used[0], new[0])


def test_every_figure_of_an_engine_is_either_corrected_or_a_limit() -> None:
    """A figure that is added must be thought of."""
    limits = {"n0", "blocks", "max_seqs", "max_tokens", "max_model_len", "max_waiting"}
    limits |= {"reuse", "ahead", "by_priority", "handoff_s"}
    assert set(ENGINE.names or ()) == {*TIMES, "length_factor", "score_odds"} | limits
