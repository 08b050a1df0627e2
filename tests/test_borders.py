"""Figures at the border: whatever number a field is given, a refusal that names it, or a simulation with finite numbers."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rllib_envs  # noqa: F401 (registers the environments)
from rllib_envs.errors import InputError
from rllib_envs.scenario import Arrivals, Predictions, Variation, with_workload
from rllib_envs.scenarios.load import load_scenario, parse_scenario
from rllib_envs.sim.profile import EngineProfile
from rllib_envs.simulation import Simulation
from tests.draws import examples


def small() -> dict[str, Any]:
    """A small world in which everything is on."""
    data = replace(load_scenario("edge2"), capacity_rps=3.0, variation=Variation()).to_dict()
    data["workload"] |= {"requests": 12, "load": 2.0}
    data["observation"] |= {"whatif": True, "counterfactual": True, "calibrate": True, "running_slots": 3, "waiting_slots": 2}
    data["faults"] |= {"telemetry_delay_s": 0.5, "engine_factor": 1.1}
    data["predictions"] |= {"length_buckets": [64, 256]}
    return data


def numbers(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Paths of all numbers within."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [found for key, item in items for found in numbers(item, (*path, key))]
    return [path] if isinstance(value, int | float) and not isinstance(value, bool) else []


NUMBERS = numbers(small())
KINDS = ["poisson", "gamma", "mmpp", "diurnal"]
EXTREME = st.floats(1e-9, 1e10) | st.sampled_from(
    [
        *(0, 1, 2, -1, 1e-6, 1e-3, 0.5, 1e3, 1e6, 1e9, 4096, 2**14, 2**16, 2**30, 1 - 1e-6),  # ends of ranges
        *(1e308, -1e308, 5e-324, 1e-300, 1e-12, 2**31, 2**63, 10**12, 10**17, 1e16),  # beyond all of them
    ]
)


def put(data: Any, path: tuple[str | int, ...], value: Any) -> None:
    for key in path[:-1]:
        data = data[key]
    old = data[path[-1]]
    data[path[-1]] = int(value) if isinstance(old, int) and abs(value) < 1e18 else value


def play(data: dict[str, Any]) -> str:
    """Play a whole episode; what was refused, if anything."""
    try:
        scenario = parse_scenario(data, "here")
        scenario = with_workload(scenario, requests=min(scenario.workload.requests, 12))
        simulation = Simulation(scenario, 1)
        simulation.start(0, 7)
    except InputError as error:
        return str(error)
    action = 0
    while not simulation.over[0]:
        reward = simulation.step(np.array([action], np.int64))
        action = (action + 1) % (scenario.n_experts + 1)
        assert np.isfinite(reward).all()
        assert np.isfinite(simulation.marginal).all()
        for name, part in simulation.view._asdict().items():
            assert np.isfinite(part).all(), name
    records = simulation.records(0)
    assert np.isfinite(records.finish_s[records.status == 2]).all()
    return ""


def test_the_world_that_is_spoiled_below_runs() -> None:
    assert play(small()) == ""
    assert len(NUMBERS) > 80


@examples(150)
@given(st.sampled_from(KINDS), st.lists(st.tuples(st.sampled_from(NUMBERS), EXTREME), min_size=1, max_size=3))
def test_any_number_is_refused_or_simulated(kind: str, changes: list[tuple[tuple[str | int, ...], float]]) -> None:
    data = copy.deepcopy(small())
    data["workload"]["arrivals"]["kind"] = kind
    if kind not in ("poisson", "gamma"):
        data["variation"]["burst_share"] = 0.0
    for path, value in changes:
        put(data, path, value)
    play(data)


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
def test_no_number_takes_truth_or_text_or_what_is_not_finite(path: tuple[str | int, ...]) -> None:
    for value in (True, "1", "yes", None, [], math.inf, math.nan, 10**400):
        data = small()
        put_raw(data, path, value)
        if value is None and path in (("capacity_rps",), ("workload", "requests")):  # None stands for a default
            continue
        with pytest.raises(InputError, match=r"here: "):
            parse_scenario(data, "here")


def put_raw(data: Any, path: tuple[str | int, ...], value: Any) -> None:
    for key in path[:-1]:
        data = data[key]
    data[path[-1]] = value


@pytest.mark.parametrize(
    "field", ["kv_tokens", "n0_tokens", "max_model_len", "max_num_batched_tokens", "max_num_seqs", "max_waiting"]
)
def test_what_the_state_cannot_hold_is_refused_with_what_is_allowed(field: str) -> None:
    data = small()
    data["experts"][0]["engine"][field] = 10**12
    with pytest.raises(InputError, match=rf"here: experts.0.engine: .*{field} = 1000000000000: must be from \d+ to [\d,]+"):
        parse_scenario(data, "here")


def test_an_engine_schedules_in_one_of_two_ways() -> None:
    data = small()
    data["experts"][0]["engine"]["scheduling"] = "shortest"
    with pytest.raises(InputError, match=r"here: experts.0.engine.scheduling.*'fcfs' or 'priority'"):
        parse_scenario(data, "here")
    with pytest.raises(ValueError, match="scheduling = shortest: must be fcfs or priority"):
        replace(load_scenario("edge2").experts[0].engine, scheduling="shortest")  # type: ignore[arg-type]


def test_python_is_as_strict_as_a_file() -> None:
    engine = load_scenario("edge2").experts[0].engine
    for wrong in ({"cv": True}, {"cv": "2"}, {"burst_ratio": math.nan}, {"kind": 1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Arrivals(**wrong)
    with pytest.raises(ValueError, match="length_buckets"):
        Predictions(length_buckets=(1.0,))  # type: ignore[arg-type]
    for wrong in ({"c0_ms": True}, {"c0_ms": "20"}, {"max_waiting": 2.0}, {"reuse_preempted_blocks": 1}, {"b_ms": math.nan}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            replace(engine, **wrong)
    assert Arrivals(cv=np.float64(3)).cv == 3  # a float of NumPy's is a float
    assert isinstance(replace(engine, max_waiting=np.int32(9)), EngineProfile)


def test_memory_that_the_machine_has_not_is_refused_before_it_is_taken() -> None:
    data = small()
    data["workload"]["requests"] = 10**9
    data["experts"][0]["engine"]["max_waiting"] = 2**16
    scenario = parse_scenario(data, "here")
    with pytest.raises(InputError, match=r"100 clusters of 2 experts would take [\d,.]+ GiB.*workload.requests = 1,000,000,000"):
        Simulation(scenario, 100)


def test_an_episode_with_more_tokens_than_can_be_counted_is_refused() -> None:
    data = small()
    for expert in data["experts"]:
        expert["mean_output_tokens"] = 1e9
        expert["engine"] |= {"max_model_len": 2**29, "kv_tokens": 2**30}
    assert "output tokens: at most 1,073,741,824" in play(data)


def test_a_path_is_a_file_and_other_types_are_named(tmp_path: Path) -> None:
    scenario = load_scenario("edge2")
    (tmp_path / "edge6").write_text(scenario.to_yaml(), encoding="utf-8")
    for make in (gym.make, gym.make_vec):
        env = make("EdgeRouting-v0", scenario=tmp_path / "edge6")
        assert env.unwrapped.scenario == scenario
        with pytest.raises(InputError, match="nowhere"):
            make("EdgeRouting-v0", scenario=tmp_path / "nowhere")
        for wrong in (5, None, b"edge6", {"name": "edge6"}):
            with pytest.raises(TypeError, match=f"scenario of type {type(wrong).__name__}: must be a str, a Path or a Scenario"):
                make("EdgeRouting-v0", scenario=wrong)
