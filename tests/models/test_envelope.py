"""What a router was trained on, and whether a world is outside."""

from dataclasses import replace

import numpy as np
import pytest

from models.envelope import INPUTS, Envelope, measure
from models.export.bundle import load_bundle, save_bundle
from models.router import Router, RouterSpec
from rllib_envs.errors import InputError
from rllib_envs.scenario import Observation, Predictions, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.service import ServiceClass
from tests.models.export.bundles import edit

EDGE6 = replace(load_scenario("edge6"), capacity_rps=25.0)


@pytest.fixture(scope="module")
def measured():
    return measure([EDGE6])


@pytest.fixture(scope="module")
def own(measured):
    return Envelope.of([measured])


def engines(**factors):
    """edge6 with figures of every engine multiplied."""
    experts = (
        replace(e, engine=replace(e.engine, **{name: getattr(e.engine, name) * f for name, f in factors.items()}))
        for e in EDGE6.experts
    )
    return replace(EDGE6, experts=tuple(experts))


CHANGED = {
    "context_time": engines(c_ms=30.0),
    "sequence_time": engines(b_ms=10.0),
    "base_time": engines(c0_ms=3.0),
    "prefill_time": engines(a_ms=6.0),
    "mean_score": replace(EDGE6, experts=tuple(replace(e, mean_score=0.95) for e in EDGE6.experts)),
    "step_drift": replace(EDGE6, faults=replace(EDGE6.faults, engine_factor=4.0)),
    "length_drift": replace(EDGE6, predictions=Predictions(length_factor=0.1)),
    "score_noise": replace(EDGE6, predictions=Predictions(score_sd=2.0)),
    "load": with_workload(EDGE6, load=200.0),
}


@pytest.mark.parametrize(("name", "world"), CHANGED.items(), ids=CHANGED)
def test_a_world_is_outside_by_the_input_that_is_changed_and_inside_its_own_envelope(own, measured, name, world):
    changed = measure([world])
    found = own.outside(changed)
    assert name in [outside.name for outside in found]
    assert [outside.excess for outside in found] == sorted((outside.excess for outside in found), reverse=True)
    assert all(outside.excess > 1 for outside in found)
    assert Envelope.of([changed]).outside(changed) == []
    assert Envelope.of([measured, changed]).outside(changed) == []  # an envelope of more worlds is wider


def test_the_units_of_time_do_not_matter():
    """All times twice as long, the deadline among them, at half the rate: the same inputs."""
    slow = replace(
        engines(c0_ms=2.0, b_ms=2.0, c_ms=2.0, a_ms=2.0, q_ms=2.0), slo_s_per_token=2 * EDGE6.slo_s_per_token, capacity_rps=12.5
    )
    ours, theirs = measure([with_workload(EDGE6, load=10.0)]), measure([with_workload(slow, load=5.0)])
    for name in set(INPUTS) - {"load", "step_drift"}:  # a load is of the capacity, which is measured to some digits
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-3, atol=1e-3, err_msg=name)


def test_a_class_with_more_time_does_not_make_engines_look_wrong():
    patient = ServiceClass(name="patient", per_token_s=3 * EDGE6.slo_s_per_token)
    assert not measure([replace(EDGE6, classes=(patient,))])["step_drift"].any()


def test_times_are_measured_in_the_units_of_every_class_that_is_drawn():
    slo_s = EDGE6.slo_s_per_token
    hasty, patient = (ServiceClass(name=f"{factor}", per_token_s=factor * slo_s) for factor in (0.5, 3))
    never = ServiceClass(name="never", share=0, per_token_s=100 * slo_s)
    one, other = (measure([replace(EDGE6, classes=(entry,))]) for entry in (hasty, patient))
    both = Envelope.of([measure([replace(EDGE6, classes=(hasty, never, patient))])])
    for name in ("base_time", "sequence_time", "context_time", "prefill_time"):
        np.testing.assert_allclose(both.ranges[name], (other[name].min(), one[name].max()), rtol=1e-6)


def test_it_measures_the_same_every_time_and_changes_nothing(measured):
    again = measure([EDGE6])
    assert all((again[name] == values).all() for name, values in measured.items())
    assert set(again) == set(measured) == set(INPUTS)


def test_it_comes_back_from_json(own):
    assert Envelope.from_json(own.to_json()) == own


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "no mapping"),
        ({}, "no mapping"),
        ([1, 2], "no mapping"),
        ({"colour": [0, 1]}, "colour: no such input"),
        ({"load": [0]}, "two numbers"),
        ({"load": [0, float("nan")]}, "two numbers"),
        ({"load": [0, True]}, "two numbers"),
        ({"load": ["0", 1]}, "two numbers"),
        ({"load": [2, 1]}, "must not exceed"),
    ],
)
def test_what_is_no_envelope_is_refused(data, message):
    with pytest.raises(ValueError, match=message):
        Envelope.from_json(data)


def test_a_bundle_keeps_it_and_one_without_still_loads(own, tmp_path):
    router = Router(RouterSpec(encoder="aggregates", hidden=8, impact_hidden=8)).eval()
    save_bundle(tmp_path / "b", router, Observation(whatif=True), {}, trained_on=own)
    assert load_bundle(tmp_path / "b").trained_on == own
    edit(tmp_path / "b", lambda contents: contents.update(trained_on={"load": [1]}))
    with pytest.raises(InputError, match=r"trained_on\.load"):
        load_bundle(tmp_path / "b")
    edit(tmp_path / "b", lambda contents: contents.pop("trained_on"))
    assert load_bundle(tmp_path / "b").trained_on is None
