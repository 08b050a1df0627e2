"""The shipped router outside its world: one line that says so, and none where it holds."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import edgeroute
from models.envelope import measure
from models.export.bundle import load_bundle
from rllib_envs.scenario import with_workload
from rllib_envs.scenarios.load import load_scenario
from tuning.evaluation.trained_on import UNKNOWN, notes_on_training
from tuning.specs.faults import FAULTS
from tuning.specs.prompts import with_predictions, with_prompts
from tuning.specs.routers import SHIPPED_ROUTER, parse_router
from tuning.specs.workloads import TraceOptions, make_workloads

pytestmark = pytest.mark.slow

SHIPPED = parse_router(f"bundle:{SHIPPED_ROUTER}")
EDGE6 = with_predictions(load_scenario("edge6"), "oracle-noise")
"""The world of its training: the law of the predictions is part of it."""
TWO_TIGHT = """
name: two-tight
slo_s_per_token: 0.03
experts:
- &a {name: a, model: m-a, gpu: G1, params_b: 7, mean_score: 0.6, mean_output_tokens: 200, engine: &e {c0_ms: 10.0, b_ms: 0.03,
    c_ms: 0.025, a_ms: 0.07, n0_tokens: 64, q_ms: 0.0, kv_tokens: 40000, kv_bytes_per_token: 131072, max_model_len: 2048}}
- {<<: *a, name: b, model: m-b, mean_score: 0.5, engine: {<<: *e, c0_ms: 7.0}}
workload: {load: 1.0, catalogue: {prompt_tokens_mean: 60}}
"""


def notes(scenario, loads=(), arrivals=(), faults=(), trace=None):
    return notes_on_training([SHIPPED], make_workloads(scenario, loads, arrivals, trace or TraceOptions(), 300, faults))


def test_where_it_was_shown_to_hold_it_says_nothing():
    assert notes(EDGE6, ["light", "moderate", "heavy"], ["poisson", "mmpp", "azure-conversation", "azure-code"]) == []
    assert notes(EDGE6, ["moderate"], (), list(FAULTS)) == []


@pytest.mark.parametrize("fleet", ["edge3", "edge10", "edge32"])
def test_it_says_nothing_of_the_fleets_that_it_was_measured_on(fleet):
    assert notes(with_predictions(load_scenario(fleet), "oracle-noise"), ["moderate"]) == []


def test_it_says_nothing_of_real_prompts_and_real_traces(data_dir):
    world = with_prompts(EDGE6, data_dir / "zeroeval/zeroeval_gsm_crux_math.jsonl.gz")
    test = with_workload(world, catalogue=replace(world.workload.catalogue, split="test"))
    assert notes(test, ["moderate"], ["poisson", "azure-conversation"]) == []
    for kind in ("code", "conv"):
        trace = TraceOptions(trace=data_dir / f"azure_llm_2023/AzureLLMInferenceTrace_{kind}.csv.gz")
        assert notes(EDGE6, ["moderate"], trace=trace) == []


OUTSIDE = {
    "paper3": (lambda: load_scenario("paper3"), (), "context_time"),
    "half the deadline": (lambda: replace(EDGE6, slo_s_per_token=0.03), ("moderate",), "base_time"),
    "more than is carried": (lambda: EDGE6, ("160%",), "load"),
    "more experts": (lambda: with_predictions(load_scenario("edge64"), "oracle-noise"), ("moderate",), "experts"),
    "other predictions": (lambda: load_scenario("edge6"), ("moderate",), "score_noise"),
    "scores of noise": (
        lambda: replace(EDGE6, predictions=replace(EDGE6.predictions, score_sd=2.0)),
        ("moderate",),
        "score_noise",
    ),
}


@pytest.mark.parametrize(("make", "loads", "name"), OUTSIDE.values(), ids=OUTSIDE)
def test_elsewhere_one_line_names_the_input(make, loads, name):
    (note,) = notes(make(), loads)
    assert note.startswith(f"{SHIPPED.name}: trained with {name} from ")
    assert "its decisions there are not to be trusted" in note


def test_of_several_workloads_it_says_which(tmp_path):
    (note,) = notes(EDGE6, ["moderate", "160%"])
    assert "edge6 has 160%, at poisson at 160%:" in note


@pytest.fixture
def two_tight(tmp_path):
    path = tmp_path / "two-tight.yaml"
    path.write_text(TWO_TIGHT)
    return path


def test_evaluate_and_simulate_say_it(two_tight, tmp_path, capsys):
    bundle = f"bundle:{SHIPPED_ROUTER}"
    out = tmp_path / "out"
    arguments = ["--scenario", str(two_tight), "--load", "1", "--smoke"]
    assert edgeroute.main(["evaluate", *arguments, "--routers", "least-work", bundle, "--jobs", "1", "--out", str(out)]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("edgeroute: warning: ")]
    (line,) = warned
    low, high = load_bundle(SHIPPED_ROUTER).trained_on.ranges["context_time"]
    value = 16_384 * 0.025 / 30  # of ms, over the deadline
    assert f"trained with context_time from {low:.3g} to {high:.3g}; expert 'a' of two-tight has {value:.3g}" in line
    (note,) = (note for note in json.loads((out / "results.json").read_text())["notes"] if "context_time" in note)
    assert line == f"edgeroute: warning: {note}"
    assert note in (out / "results.md").read_text()
    assert edgeroute.main(["simulate", *arguments, "--router", bundle]) == 0
    assert capsys.readouterr().err.strip() == line


def test_a_bundle_that_does_not_say_is_named(tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    for path in Path(SHIPPED_ROUTER).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    contents = json.loads((folder / "router.json").read_text())
    contents.pop("trained_on")
    (folder / "router.json").write_text(json.dumps(contents))
    router = parse_router(f"bundle:{folder}")
    assert notes_on_training([router], make_workloads(EDGE6, ["light"], (), TraceOptions(), 50)) == [f"{router.name}: {UNKNOWN}"]


def test_heuristics_need_no_training():
    assert notes_on_training([parse_router("impact-greedy")], make_workloads(EDGE6, (), (), TraceOptions(), 50)) == []


def test_the_shipped_envelope_is_of_the_default_training_worlds():
    """What edge6 is like lies in it, and it has no input that is unbounded."""
    envelope = load_bundle(SHIPPED_ROUTER).trained_on
    own = measure([EDGE6])
    for name in ("base_time", "sequence_time", "context_time", "prefill_time", "mean_score"):
        low, high = envelope.ranges[name]
        assert low - 1e-3 <= own[name].min() <= own[name].max() <= high + 1e-3
    assert envelope.ranges["load"] == (0.2, 1.2)
