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
from rllib_envs.sim.calibration import (
    CALIBRATION,
    LENGTH_FLOOR,
    LENGTH_PRIOR,
    STEP_FLOOR,
    STEP_PRIOR,
    note_length,
    note_step,
)
from rllib_envs.sim.rows import EXPERT_FEATURES
from rllib_envs.sim.state import ENGINE
from rllib_envs.simulation import Simulation
from rllib_envs.workload.episode import Episode
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
CALIBRATED = replace(WATCHED, calibrate=True)
DRIFTS = [EXPERT_FEATURES.index(name) for name in ("length_drift", "step_drift")]
TIMES = ("c0_s", "b_s", "c_s", "a_s", "q_s", "c_mixed_s", "c0_mixed_s")
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


@given(st.lists(st.floats(0.2, 5), min_size=1, max_size=120))
@pytest.mark.parametrize(
    ("note", "name", "prior", "floor"),
    [(note_length, "length_log", LENGTH_PRIOR, LENGTH_FLOOR), (note_step, "step_log", STEP_PRIOR, STEP_FLOOR)],
)
def test_an_average_starts_as_a_shrunk_mean_and_goes_on_as_a_moving_one(
    note: object, name: str, prior: float, floor: float, ratios: list[float]
) -> None:
    record = np.zeros(1, CALIBRATION)[0]
    logs = np.log(ratios)
    for k, ratio in enumerate(ratios, start=1):
        before = record[name]
        note(record, 100.0 * ratio, 100.0)  # type: ignore[operator]
        if prior + k <= 1 / floor:
            assert record[name] == pytest.approx(logs[:k].sum() / (prior + k), abs=1e-12)
        else:
            assert record[name] == pytest.approx((1 - floor) * before + floor * logs[k - 1], abs=1e-12)


@late_or_not
@examples(40)
@given(seed=seeds)
def test_where_nothing_is_wrong_nothing_changes_to_the_last_bit(delay_s: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scenario, episode, actions = random_world(rng, observation=CALIBRATED, faults=Faults(telemetry_delay_s=delay_s))
    episode = replace(episode, predicted_tokens=episode.output.astype(np.float32))
    off = simulation_of(replace(scenario, observation=WATCHED), episode)
    on = simulation_of(scenario, episode)
    for action in actions:
        play(off, action[None])
        play(on, action[None])
        assert_same(off.view, on.view)
        np.testing.assert_array_equal(off.marginal, on.marginal)
    learnt = on.world.calibration.records
    assert not learnt["length_log"].any()
    assert not learnt["step_log"].any()
    assert learnt["lengths"].sum() == shown(on, delay_s)


@late_or_not
@examples(40)
@given(seed=seeds)
def test_off_nothing_is_learnt_and_on_only_the_view_changes(delay_s: float, seed: int) -> None:
    scenario, episode, actions = faulty_world(np.random.default_rng(seed), delay_s)
    off = simulation_of(replace(scenario, observation=WATCHED), episode)
    on = simulation_of(scenario, episode)
    told = off.world.nominal.copy()
    np.testing.assert_array_equal(play(off, actions), play(on, actions))
    assert [array.tobytes() for array in off.state] == [array.tobytes() for array in on.state]
    np.testing.assert_array_equal(off.marginal, on.marginal)
    assert off.world.nominal.tobytes() == told.tobytes()
    assert (told["length_factor"] == 1).all()
    assert not off.world.calibration.records["steps"].any()
    assert not off.view.experts[..., DRIFTS].any()
    assert on.world.calibration.records["lengths"].sum() == shown(off, delay_s)


@late_or_not
@examples(60)
@given(seed=seeds)
def test_lengths_are_learnt_from_the_completions_that_telemetry_has_shown(delay_s: float, seed: int) -> None:
    """Look by look, in order of arrival, from the records of the episode."""
    rng = np.random.default_rng(seed)
    scenario, episode, actions = faulty_world(rng, delay_s)
    count = int(rng.integers(1, REQUESTS))
    simulation = simulation_of(scenario, episode)
    play(simulation, actions[:count])
    learnt = simulation.world.calibration.records[0].copy()
    play(simulation, actions[count:])
    ends = simulation.records(0)
    average, samples = np.zeros(scenario.n_experts), np.zeros(scenario.n_experts, int)
    seen_s = 0.0
    for at_s in episode.arrival_s[1 : count + 1]:
        view_s = max(at_s - delay_s, 0.0)
        for r in np.flatnonzero((ends.finish_s > seen_s) & (ends.finish_s <= view_s)):
            e = ends.route[r]
            samples[e] += 1
            told = min(episode.predicted_tokens[r, e], scenario.experts[e].engine.max_model_len - episode.prompt[r])
            gain = max(1 / (LENGTH_PRIOR + samples[e]), LENGTH_FLOOR)
            average[e] += gain * (math.log(ends.output_tokens[r] / told) - average[e])
        seen_s = max(seen_s, view_s)
    np.testing.assert_array_equal(learnt["lengths"], samples)
    np.testing.assert_allclose(learnt["length_log"], average, atol=1e-12)


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
    learnt = simulation.world.calibration.records[0]
    k = learnt["steps"]
    left = np.where(
        k <= 1 / STEP_FLOOR - STEP_PRIOR,
        STEP_PRIOR / (STEP_PRIOR + k),
        STEP_PRIOR * STEP_FLOOR * (1 - STEP_FLOOR) ** (k - (1 / STEP_FLOOR - STEP_PRIOR)),
    )
    np.testing.assert_allclose(learnt["step_log"], math.log(1.3) * (1 - left), rtol=1e-9)
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
        samples.append(int(simulation.world.calibration.records["steps"][0, 0]))
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
    learnt = simulation.world.calibration.records
    assert not learnt["step_log"][0].any()
    for true, told, log in zip(
        simulation.state.engines[1], simulation.world.calibration.configured[1], learnt["step_log"][1], strict=True
    ):
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
    n = simulation.world.calibration.records["lengths"]
    shrunk = -math.log(0.6) * (1 - LENGTH_PRIOR / (LENGTH_PRIOR + n.mean()))  # what the prior still holds back, about
    assert abs(logs.mean() - shrunk) < 4.5 * logs.std(ddof=1) / math.sqrt(8) + 0.03  # short answers are over first


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
    learnt = simulation.world.calibration.records
    np.testing.assert_array_equal(factor, np.exp(learnt["length_log"]).astype(np.float32))
    for name in TIMES:
        told = simulation.world.calibration.configured[name]
        np.testing.assert_allclose(simulation.world.nominal[name], told * np.exp(learnt["step_log"]), rtol=1e-12)
    np.testing.assert_array_equal(simulation.view.experts[..., DRIFTS[0]], learnt["length_log"].astype(np.float32))
    np.testing.assert_array_equal(simulation.view.experts[..., DRIFTS[1]], learnt["step_log"].astype(np.float32))
    other = copy.deepcopy(simulation)
    other.world.nominal["length_factor"] = 1
    other.workload.predicted_tokens[0] *= factor[0]
    sent = actions[:count] < scenario.n_experts
    for state in {id(s): s for s in (other.world.state, other.world.late)}.values():
        state.requests["predicted_tokens"][0, :count][sent] *= factor[0, actions[:count][sent]]
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
    limits = {"n0", "blocks", "max_seqs", "max_tokens", "max_model_len", "max_waiting", "reuse", "ahead", "handoff_s"}
    assert set(ENGINE.names or ()) == {*TIMES, "length_factor"} | limits
