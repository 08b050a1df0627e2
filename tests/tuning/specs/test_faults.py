"""Named faults: what they change, and what they leave alone."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import tuning
from rllib_envs.dynamics import Dynamics, Neighbour
from rllib_envs.errors import InputError
from rllib_envs.scenario import Faults, Variation, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.service_terms import allowed_experts
from rllib_envs.sim.state import FINISHED, PENDING, REJECTED, ROUTED
from rllib_envs.workload.episode import draw_episode
from tuning.evaluation.matrix import Cell, run_cell, start_simulation
from tuning.specs.faults import CHANGES, FAULTS, NO_FAULT, UNCONFINED, describe_fault, parse_faults, with_fault
from tuning.specs.routers import parse_router
from tuning.specs.workloads import TraceOptions, make_workloads

EDGE6 = dataclasses.replace(with_workload(load_scenario("edge6"), requests=400), capacity_rps=24.8)
REAL = [name for name in FAULTS if name not in (NO_FAULT, UNCONFINED)]


def episode(name, seed=5):
    return draw_episode(with_fault(EDGE6, name), 24.8, seed)


def iteration_time_ratios(name, seed=5):
    """(N, coefficients) true over told coefficients of the engines."""
    drawn = episode(name, seed)
    names = ("c0_ms", "b_ms", "c_ms", "a_ms", "q_ms", "c_mixed_ms")
    return np.array(
        [
            [getattr(true, x) / getattr(told, x) for x in names if getattr(told, x)]
            for true, told in zip(drawn.engines, drawn.nominal, strict=True)
        ]
    )


def told_ratios(name):
    """Told over true lengths."""
    drawn = episode(name)
    return drawn.predicted_tokens / drawn.output


@pytest.mark.parametrize("name", REAL)
def test_the_same_requests_come_at_the_same_times_and_something_else_differs(name):
    clean, faulty = episode(NO_FAULT), episode(name)
    for field in ("arrival_s", "prompt", "score", "output"):
        assert np.array_equal(getattr(clean, field), getattr(faulty, field))
    told = ("predicted_score", "predicted_tokens")
    assert (
        any(not np.array_equal(getattr(clean, field), getattr(faulty, field)) for field in told)
        or clean.engines != faulty.engines
        or clean.telemetry_delay_s != faulty.telemetry_delay_s
        or (faulty.disturbances is not None) == (name in CHANGES)
    )
    assert clean.disturbances is None


def test_engines_take_more_or_less_time_than_told():
    assert iteration_time_ratios("engine-fast") == pytest.approx(0.75)
    assert iteration_time_ratios("engine-slow") == pytest.approx(1.25)
    mixed = np.concatenate([iteration_time_ratios("engine-mixed", seed)[:, :1] for seed in range(60)])
    assert np.log(mixed).mean() == pytest.approx(0, abs=4 * 0.25 / np.sqrt(mixed.size))
    assert np.log(mixed).std() == pytest.approx(0.25, rel=0.2)
    assert np.maximum(*(r := iteration_time_ratios("engine-coefficients"), 1 / r)) == pytest.approx(1.4)


def test_lengths_are_told_shorter_or_longer_than_true():
    clean = told_ratios(NO_FAULT)
    assert told_ratios("lengths-short") == pytest.approx(np.maximum(0.6 * clean, 1 / episode(NO_FAULT).output), rel=1e-5)
    assert told_ratios("lengths-long") == pytest.approx(1.6 * clean, rel=0.3)  # tiny answers are told as one token
    assert np.median(told_ratios("lengths-long") / clean) == pytest.approx(1.6)
    hidden = np.median(told_ratios("lengths-hidden") / clean, axis=1)
    assert set(np.round(hidden, 3)) == {0.4, 1.0}
    assert (hidden < 0.5).mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.21 / hidden.size))


def test_scarce_memory_preempts_at_moderate_load():
    preempted = {}
    for name in (NO_FAULT, "kv-tight"):
        (workload,) = make_workloads(EDGE6, ["moderate"], [], TraceOptions(), None, [name])
        simulation = start_simulation(parse_router("least-work"), workload.scenario, [1, 2])
        preempted[name] = sum(simulation.records(cluster).preemptions.sum() for cluster in range(2))
    assert preempted["kv-tight"] > 1.3 * max(preempted[NO_FAULT], 10)


def test_a_fault_is_one_world_and_keeps_what_the_scenario_has_beside():
    own = dataclasses.replace(EDGE6, faults=Faults(telemetry_delay_s=0.2), variation=Variation())
    slow = with_fault(own, "engine-slow")
    assert slow.variation is None
    assert slow.faults == Faults(telemetry_delay_s=0.2, engine_factor=1.25)
    assert with_fault(own, NO_FAULT) == dataclasses.replace(own, variation=None)


def test_all_are_the_faults_themselves():
    assert parse_faults(["all"]) == REAL
    assert parse_faults(["none", "kv-tight", "all"]) == ["none", "kv-tight", *(name for name in REAL if name != "kv-tight")]
    with pytest.raises(InputError, match="fault 'engine-fats': unknown; did you mean 'engine-fast'"):
        parse_faults(["engine-fats"])


def test_a_description_gives_every_value():
    for name, values in FAULTS.items():
        assert all(f"{key} = {value:g}" in describe_fault(name) for key, value in values.items())


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_within_the_episode_adds_to_those_of_the_scenario(name):
    own = dataclasses.replace(EDGE6, dynamics=Dynamics(retries=3, neighbour=Neighbour()))
    changed = with_fault(own, name)
    assert changed.dynamics == dataclasses.replace(own.dynamics, **CHANGES[name])
    assert with_fault(own, NO_FAULT) == own
    (part,) = CHANGES[name].values()
    numbers = {key: value for key, value in dataclasses.asdict(part).items() if isinstance(value, float)}
    assert numbers
    assert all(f"{key} = {value:g}" in describe_fault(name) for key, value in numbers.items())


@pytest.mark.parametrize(
    ("name", "metric"), [("churn", "retried_rate"), ("impatient", "cancelled_rate"), ("throttle", "violation_rate")]
)
def test_changes_within_the_episode_show_in_the_tables(name, metric):
    metrics = {}
    for fault in (NO_FAULT, name):
        (workload,) = make_workloads(EDGE6, ["moderate"], [], TraceOptions(), 1500, [fault])
        result = run_cell(Cell(router=parse_router("join-shortest-queue"), scenario=workload.scenario, seeds=(1,)))
        metrics[fault] = result.metrics
        ends = ("completion_rate", "drop_rate", "rejected_rate", "cancelled_rate", "failed_rate")
        assert sum(result.metrics[end][0] for end in ends) == pytest.approx(1)
    assert metrics[name][metric][0] > metrics[NO_FAULT][metric][0]


@pytest.mark.parametrize("bundle", ["edge6-router", "any-cluster-router"])
@pytest.mark.parametrize("name", CHANGES)
def test_shipped_routers_work_under_every_change(name, bundle):
    world = with_fault(with_workload(EDGE6, requests=150, load=15.0), name)
    folder = Path(tuning.__file__).parent / "presets" / bundle
    records = start_simulation(parse_router(f"bundle:{folder}"), world, [1]).records(0)
    assert records.status.size == 150
    assert not np.isin(records.status, (PENDING, ROUTED, REJECTED)).any()
    assert (records.status == FINISHED).mean() > 0.5


def test_workloads_are_crossed_with_faults_and_named_by_them():
    workloads = make_workloads(EDGE6, ["light", "heavy"], ["poisson"], TraceOptions(), 7, ["none", "engine-slow"])
    clean, slow, *heavy = workloads
    assert [w.name for w in workloads[:2]] == ["poisson at light", "poisson at light with engine-slow"]
    assert [w.clean_name for w in heavy] == ["poisson at heavy"] * 2
    assert slow.rate_rps == clean.rate_rps == pytest.approx(0.3 * 24.8)
    assert slow.scenario == with_fault(clean.scenario, "engine-slow")
    (own,) = make_workloads(dataclasses.replace(EDGE6, variation=Variation()), ["light"], [], TraceOptions(), 7)
    assert own.scenario.variation == Variation()  # it takes a named fault to end it


def test_unconfined_requests_may_go_everywhere_and_nothing_else_differs():
    sites = load_scenario("edge6-sites")
    free = with_fault(sites, UNCONFINED)
    assert not allowed_experts(sites).all()
    assert allowed_experts(free).all()
    confined = dataclasses.replace(free, tenants=sites.tenants)
    assert confined == sites
    assert "every expert" in describe_fault(UNCONFINED)
