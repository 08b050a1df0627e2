"""What predictions are worth: features that say it, and change nothing else."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rllib_envs.scenario import Observation, Predictions
from rllib_envs.sim.calibration import ERRORS, note_error
from rllib_envs.sim.rows import INFORMATION_FEATURES, INFORMATION_TABLE
from rllib_envs.simulation import Simulation
from tests.draws import examples
from tests.worlds import seeds, small

SCENARIO = small("edge3", requests=60)


def play(scenario, seed, choose=lambda simulation: 0):
    """Every observation of an episode, and the simulation at its end."""
    simulation = Simulation(scenario, 1)
    simulation.start_all([seed])
    shown = []
    while not simulation.over.all():
        shown.append({key: x.copy() for key, x in simulation.view._asdict().items()})
        simulation.step(np.array([choose(simulation)]))
    return shown, simulation


def informed(scenario, **predictions):
    return replace(scenario, observation=replace(scenario.observation, information=True), predictions=Predictions(**predictions))


def quantity(shown, name):
    """(M, N) a feature at each decision, in its unit."""
    i = INFORMATION_FEATURES.index(name)
    return np.stack([one["information"][0, :, i] for one in shown]) * INFORMATION_TABLE[name].scale


@examples(20)
@given(seed=seeds, calibrate=st.booleans())
def test_all_else_is_the_same_to_the_last_bit(seed, calibrate):
    scenario = replace(SCENARIO, observation=Observation(whatif=True, calibrate=calibrate))
    choose = lambda simulation: int(simulation.view.whatif[0].sum(axis=-1).argmax())  # noqa: E731
    without, with_it = play(scenario, seed, choose)[0], play(informed(scenario), seed, choose)[0]
    assert len(without) == len(with_it)
    for one, other in zip(without, with_it, strict=True):
        for key in one.keys() - {"information"}:
            np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.parametrize("law", ["measured", "oracle-noise", "means"])
def test_they_are_what_they_say(law):
    shown, simulation = play(informed(SCENARIO, law=law), seed=3)
    w = simulation.workload
    np.testing.assert_array_equal(quantity(shown, "predicted_log_sd"), w.predicted_log_sd[0])
    score, log_tokens = w.predicted_score[0].astype(np.float64), np.log(w.predicted_tokens[0].astype(np.float64))
    for name, values in (("score_spread", score), ("length_spread", log_tokens)):
        expected = [values[: i + 1].std(axis=0) for i in range(len(values))]  # the first hundred count alike
        np.testing.assert_allclose(quantity(shown, name), expected, atol=1e-5)
        assert (quantity(shown, name)[-1] > 0.05).all() == (law != "means")


def test_an_episode_begins_without_what_the_last_one_has_shown():
    simulation = Simulation(informed(SCENARIO), 1)
    seen = []
    for _ in range(2):
        simulation.start_all([5])
        seen.append(simulation.view.information.copy())
        for _ in range(30):
            simulation.step(np.array([1]))
    np.testing.assert_array_equal(*seen)


def test_errors_are_the_root_mean_square_of_those_that_finished_answers_showed():
    calibrated = replace(SCENARIO, observation=Observation(calibrate=True))
    shown, simulation = play(informed(calibrated), seed=2, choose=lambda simulation: int(simulation.cursor[0] % 3))
    assert (quantity(play(informed(SCENARIO), seed=2)[0], "length_error") == 0).all()
    records = simulation.records(0)
    error = np.log(records.output_tokens / records.predicted_tokens)
    checked = 0
    for i, now_s in enumerate(records.arrival_s):
        for e in range(3):
            known = (records.route == e) & (records.finish_s < now_s)
            if known.any():
                assert quantity(shown, "length_error")[i, e] == pytest.approx(np.sqrt(np.mean(error[known] ** 2)), rel=1e-5)
                checked += 1
    assert checked > 50


@given(st.lists(st.tuples(st.integers(1, 4000), st.floats(1, 4000)), min_size=1, max_size=100))
def test_the_first_hundred_errors_count_alike(answers):
    errors = np.zeros(1, ERRORS)
    for actual, predicted in answers:
        note_error(errors[0], actual, predicted)
    expected = np.mean(np.square(np.log([actual / predicted for actual, predicted in answers])))
    assert errors["square"][0] == pytest.approx(expected, rel=1e-9, abs=1e-15)
