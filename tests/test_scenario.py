"""Scenarios as data: what is read back, and what is refused, with the field, the value and where it was read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import FrozenInstanceError, asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rllib_envs
from rllib_envs.errors import InputError
from rllib_envs.scenario import (
    Arrivals,
    Catalogue,
    Faults,
    Observation,
    Predictions,
    Reward,
    Scenario,
    TraceFile,
    Variation,
    Workload,
    with_workload,
)
from rllib_envs.scenarios.load import load_scenario, parse_scenario, preset_names
from rllib_envs.yaml_files import parse_yaml
from tests.draws import examples

positive = st.floats(1e-3, 1e3)
fraction = st.floats(0, 1)

ARRIVALS = st.builds(
    Arrivals,
    kind=st.sampled_from(["poisson", "gamma", "mmpp", "diurnal", "azure-conversation", "azure-code"]),
    cv=positive,
    burst_ratio=st.floats(1, 50),
    burst_share=st.floats(0.01, 0.99),
    cycle_s=positive,
    period_s=positive,
    amplitude=fraction,
) | st.builds(
    Arrivals,
    kind=st.just("trace"),
    trace=st.builds(
        TraceFile,
        path=st.text(min_size=1),
        format=st.sampled_from(["auto", "csv"]),
        time_column=st.text(),
        prompt_column=st.none() | st.text(),
        start_s=st.floats(0, 1e6),
        duration_s=st.none() | positive,
    )
    | st.builds(
        TraceFile,
        path=st.text(min_size=1),
        format=st.sampled_from(["azure", "mooncake", "burstgpt"]),
        jitter=st.none() | st.booleans(),
    ),
)
WORKLOADS = st.builds(
    Workload,
    arrivals=ARRIVALS,
    load=positive | st.sampled_from(["light", "moderate", "heavy", "mixed"]),
    mixed_range=st.tuples(positive, positive).map(lambda pair: (min(pair), max(pair))),
    requests=st.integers(1, 10**6),
    catalogue=st.builds(Catalogue, scores=st.sampled_from(["continuous", "binary"]), prompt_tokens_mean=positive)
    | st.builds(Catalogue, kind=st.just("file"), path=st.text(), split=st.sampled_from(["train", "test", "all"])),
)
SCENARIOS = st.builds(
    replace,
    st.sampled_from(["edge6", "paper3", "edge4"]).map(load_scenario),
    name=st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), min_size=1, max_size=200),
    slo_s_per_token=positive,
    capacity_rps=st.none() | positive,
    workload=WORKLOADS,
    predictions=st.builds(
        Predictions,
        law=st.sampled_from(["auto", "oracle-noise"]),
        score_sd=st.none() | positive,
        hidden_share=fraction,
        length_buckets=st.tuples(st.integers(1, 99)),
    ),
    faults=st.builds(Faults, engine_factor=positive, telemetry_delay_s=st.floats(0, 10), kv_factor=st.floats(0.01, 1)),
    reward=st.builds(Reward, realised_qos=st.floats(-5, 5), drop=positive),
    observation=st.builds(
        Observation, running_slots=st.integers(1, 99), whatif=st.booleans(), calibrate=st.booleans(), judged_share=st.floats(0, 1)
    ),
)


@examples(60)
@given(SCENARIOS)
def test_any_scenario_is_read_back_from_its_yaml(scenario: Scenario) -> None:
    again = parse_scenario(parse_yaml(scenario.to_yaml(), "round trip"), "round trip")
    assert again == scenario
    assert again.fingerprint() == scenario.fingerprint()


@pytest.fixture
def data() -> dict[str, Any]:
    """A scenario as YAML gives it."""
    return json.loads(json.dumps(asdict(load_scenario("edge3"))))


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Paths of all mappings within."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [path] if isinstance(value, dict) else []
    for key, item in inner:
        found += leaves(item, (*path, key))
    return found


def at(value: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def test_an_unknown_key_is_refused_wherever_it_stands(data: dict[str, Any]) -> None:
    data["workload"]["arrivals"] |= {"kind": "trace", "trace": asdict(TraceFile(path="x"))}
    paths = leaves(data)
    assert len(paths) > 10
    for path in paths:
        spoiled = json.loads(json.dumps(data))
        at(spoiled, path)["typo_s"] = 5.25
        with pytest.raises(InputError) as refused:
            parse_scenario(spoiled, "here.yaml")
        message = str(refused.value)
        assert message.startswith("here.yaml: ")
        assert f"{'.'.join(map(str, (*path, 'typo_s')))}: " in message
        assert "5.25" in message


BAD: list[tuple[str, Any]] = [
    ("name", 5),
    ("experts", []),
    ("experts", "one"),
    ("experts.0.name", ""),
    ("experts.1.params_b", 0),
    ("experts.1.mean_score", 1.0),
    ("experts.1.mean_output_tokens", 1),
    ("slo_s_per_token", 0),
    ("slo_s_per_token", "soon"),
    ("slo_s_per_token", float("inf")),
    ("capacity_rps", -1),
    ("workload.requests", 0),
    ("workload.requests", 2.5),
    ("workload.arrivals.kind", "uniform"),
    ("workload.arrivals.cv", 0),
    ("workload.arrivals.burst_ratio", 0.5),
    ("workload.arrivals.burst_share", 1),
    ("workload.arrivals.cycle_s", -3),
    ("workload.arrivals.period_s", 0),
    ("workload.arrivals.amplitude", 1.5),
    ("workload.catalogue.kind", "web"),
    ("workload.catalogue.scores", "stars"),
    ("workload.catalogue.prompt_tokens_mean", 0),
    ("workload.catalogue.prompt_tokens_cv", float("nan")),
    ("workload.catalogue.split", "both"),
    ("predictions.law", "gaussian"),
    ("predictions.score_sd", -0.1),
    ("predictions.score_bias", "much"),
    ("predictions.length_log_sd", -1),
    ("predictions.length_factor", 0),
    ("predictions.hidden_share", 2),
    ("predictions.hidden_factor", 0.5),
    ("faults.engine_factor", 0),
    ("faults.engine_expert_log_sd", -1),
    ("faults.engine_coefficient_factor", 0.9),
    ("faults.telemetry_delay_s", -0.5),
    ("reward.violation", -1),
    ("reward.paper_impact", -1),
    ("reward.drop", -1),
    ("reward.marginal_qos", None),
    ("observation.running_slots", 0),
    ("observation.waiting_slots", 0),
    ("observation.whatif", 7),
    ("observation.whatif_tau", 0),
]


def put(data: dict[str, Any], path: str, value: Any) -> None:
    """Set the entry at a dotted path."""
    *folder, name = [int(key) if key.isdigit() else key for key in path.split(".")]
    at(data, tuple(folder))[name] = value


@pytest.mark.parametrize(("path", "value"), BAD, ids=[f"{path}={value!r}" for path, value in BAD])
def test_a_bad_value_is_refused_with_its_field_and_place(path: str, value: Any, data: dict[str, Any]) -> None:
    put(data, path, value)
    with pytest.raises(InputError) as refused:
        parse_scenario(data, "here.yaml")
    (line,) = str(refused.value).splitlines()
    assert line.startswith(f"here.yaml: {path}: ")
    assert repr(value) in line


@pytest.mark.parametrize("value", [0, -2.0, "busy", None])
def test_a_bad_load_is_refused(value: Any, data: dict[str, Any]) -> None:
    put(data, "workload.load", value)
    with pytest.raises(InputError, match=r"here.yaml: workload.load.*: .*got"):
        parse_scenario(data, "here.yaml")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            "workload.load",
            "native",
            r"workload: .*load = 'native' with arrivals.kind = 'poisson': only a trace has a rate of its own",
        ),
        ("workload.arrivals.kind", "trace", r"workload.arrivals: .*kind = 'trace' and trace not given"),
        ("workload.arrivals.trace", {"path": "x"}, r"workload.arrivals: .*kind = 'poisson' and trace given"),
        ("workload.catalogue.kind", "file", r"workload.catalogue: .*kind = 'file' and path = None"),
        ("workload.catalogue.path", "x", r"workload.catalogue: .*kind = 'synthetic' and path = 'x'"),
        ("workload.mixed_range", [1.2, 0.2], r"workload: .*mixed_range = \(1.2, 0.2\): the first must not exceed the second"),
        ("variation", {"kv_factor": [1.0, 0.5]}, r"variation: .*kv_factor = \(1.0, 0.5\): the first must not exceed the second"),
        ("variation", {"kv_factor": [0.5, 1.5]}, r"variation.kv_factor.1: .*got 1.5"),
        ("variation", {"hidden_factor": [0.5, 2]}, r"variation.hidden_factor.0: .*got 0.5"),
        ("variation", {"fault_share": 1.5}, r"variation.fault_share: .*got 1.5"),
        ("faults.kv_factor", 0, r"faults.kv_factor: .*greater than or equal to 0.000001 \(got 0\)"),
        ("faults.kv_factor", 1.1, r"faults.kv_factor: .*less than or equal to 1 \(got 1.1\)"),
        ("predictions.length_buckets", [16, -1], r"predictions.length_buckets.1: .*got -1"),
        ("experts.1.engine.c0_ms", -1.0, r"experts.1.engine: .*c0_ms = -1.0: must be from 0.001 to 1,000,000"),
        ("experts.1.engine.kv_tokens", 512, r"experts.1.engine: .*kv_tokens = 512: must hold the largest request"),
        (
            "experts.1.engine.max_num_batched_tokens",
            8,
            r"experts.1.engine: .*max_num_batched_tokens = 8: must be >= max_num_seqs",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(path: str, value: Any, message: str, data: dict[str, Any]) -> None:
    put(data, path, value)
    with pytest.raises(InputError, match=rf"^here.yaml: {message}"):
        parse_scenario(data, "here.yaml")


def test_a_trace_cannot_be_made_bursty(data: dict[str, Any]) -> None:
    data |= {"variation": {"burst_share": 0.2}}
    data["workload"]["arrivals"]["kind"] = "azure-code"
    with pytest.raises(InputError, match=r"^here.yaml: scenario: .*burst_share = 0.2 with arrivals.kind = 'azure-code'"):
        parse_scenario(data, "here.yaml")
    data["variation"]["burst_share"] = 0
    assert parse_scenario(data, "here.yaml").variation == Variation(burst_share=0)


@pytest.mark.parametrize("path", ["experts", "slo_s_per_token", "name", "experts.2.engine", "experts.0.engine.c0_ms"])
def test_what_is_missing_is_named(path: str, data: dict[str, Any]) -> None:
    *folder, name = [int(key) if key.isdigit() else key for key in path.split(".")]
    del at(data, tuple(folder))[name]
    with pytest.raises(InputError, match=rf"^here.yaml: {path}: (Field|Missing)"):
        parse_scenario(data, "here.yaml")


def test_every_mistake_gets_a_line_of_its_own(data: dict[str, Any]) -> None:
    for path, value in (("slo_s_per_token", -1), ("workload.requests", 0), ("experts.0.params_b", "big")):
        put(data, path, value)
    with pytest.raises(InputError) as refused:
        parse_scenario(data, "here.yaml")
    assert len(str(refused.value).splitlines()) == 3


def test_names_of_experts_are_unique(data: dict[str, Any]) -> None:
    data["experts"][2]["name"] = data["experts"][0]["name"]
    with pytest.raises(InputError, match=r"^here.yaml: scenario: .*name 'gemma-2-9b.rtx-4090' is used more than once"):
        parse_scenario(data, "here.yaml")
    del data["experts"][1:]
    with pytest.raises(InputError, match=r"^here.yaml: experts: .*at least 2 items"):
        parse_scenario(data, "here.yaml")


@pytest.mark.parametrize("value", [None, 3, "edge6", []])
def test_what_is_no_mapping_is_no_scenario(value: Any) -> None:
    with pytest.raises(InputError, match=r"^here.yaml: scenario: "):
        parse_scenario(value, "here.yaml")


def test_a_file_is_read_and_named_in_messages(tmp_path: Path) -> None:
    scenario = replace(load_scenario("edge6"), name="mine", slo_s_per_token=0.07)
    path = tmp_path / "mine.yaml"
    path.write_text(scenario.to_yaml())
    assert load_scenario(str(path)) == scenario
    path.write_text(scenario.to_yaml().replace("slo_s_per_token: 0.07", "slo_s_per_token: -0.07"))
    with pytest.raises(InputError, match=rf"^{path}: slo_s_per_token: .*greater than or equal to 0.000001 \(got -0.07\)"):
        load_scenario(str(path))
    path.write_text("name: [unclosed\n")
    with pytest.raises(InputError, match=rf"^{path}:2:1: not YAML: .*"):
        load_scenario(str(path))
    path.write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(InputError, match=rf"^{path}: is in UTF-16: save it as UTF-8$"):
        load_scenario(str(path))


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_parsed_once_and_is_what_its_file_says(name: str) -> None:
    preset = load_scenario(name)
    assert load_scenario(name) is preset
    assert load_scenario(Path(rllib_envs.__file__).parent / "scenarios" / f"{name}.yaml") == preset


@pytest.mark.parametrize("name", ["edge", "nowhere", "edge6.yml", "../edge6"])
def test_what_is_neither_preset_nor_file_is_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(InputError) as refused:
        load_scenario(name)
    assert f"scenario {name!r}" in str(refused.value)
    assert all(preset in str(refused.value) for preset in preset_names())


def changed(value: Any, share: bool) -> Any:
    """Another value of the same kind, valid next to it; ``share``: 1 is the most."""
    if value is None:
        return 0.2
    if isinstance(value, str):
        return "oracle-noise"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if value == 1:
        return 1 - 1e-3 if share else 1 + 1e-3
    return value * 1.01 + 1e-3


CHANGES: list[Callable[[Scenario], Scenario]] = [
    lambda s, part=part, field=field.name: replace(  # type: ignore[misc]
        s, **{part: replace(getattr(s, part), **{field: changed(getattr(getattr(s, part), field), field == "kv_factor")})}
    )
    for part in ("reward", "observation", "faults", "predictions")
    for field in fields({"reward": Reward, "observation": Observation, "faults": Faults, "predictions": Predictions}[part])
    if field.name not in ("length_buckets", "predictors")  # predictors go with a file: tests/workload/test_prediction_table.py
]


def test_the_fingerprint_tells_any_change() -> None:
    scenario = load_scenario("edge6")
    others = [change(scenario) for change in CHANGES]
    others.append(with_workload(scenario, requests=1999))
    others += [replace(scenario, variation=variation) for variation in (Variation(), Variation(kv_factor=(0.4, 1)))]
    first, *rest = scenario.experts
    others.append(replace(scenario, experts=(replace(first, engine=replace(first.engine, max_waiting=255)), *rest)))
    others.append(replace(scenario, experts=tuple(reversed(scenario.experts))))
    prints = {s.fingerprint() for s in (scenario, *others)}
    assert len(prints) == 1 + len(others) > 20
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in prints)


def test_text_and_fingerprint_know_of_judged_answers_where_there_are_any() -> None:
    scenario = load_scenario("edge6")
    assert "judged_share" not in scenario.to_yaml()
    judged = replace(scenario, observation=replace(scenario.observation, judged_share=0.2))
    assert parse_scenario(judged.to_dict(), "here") == judged != scenario
    assert judged.fingerprint() != scenario.fingerprint()


def test_a_scenario_cannot_be_changed() -> None:
    def frozen(value: Any) -> None:
        if is_dataclass(value):
            with pytest.raises(FrozenInstanceError):
                setattr(value, fields(value)[0].name, None)
            for field in fields(value):
                frozen(getattr(value, field.name))
        elif isinstance(value, tuple):
            for item in value:
                frozen(item)

    frozen(load_scenario("edge3"))
    hash(load_scenario("edge3"))  # so that it may be a key


def test_with_workload_replaces_what_it_is_told_and_nothing_else() -> None:
    scenario = load_scenario("edge6")
    other = with_workload(scenario, requests=7, load="light")
    assert (other.workload.requests, other.workload.load) == (7, "light")
    assert replace(other, workload=scenario.workload) == scenario
