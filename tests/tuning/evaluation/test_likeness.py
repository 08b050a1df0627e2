"""Which tuned parameters a trace is given: those of arrivals like its own, or none."""

import gzip
import itertools
import math

import numpy as np
import pytest

from rllib_envs.scenarios.load import load_scenario
from tuning.evaluate import _note_on_choice
from tuning.evaluation.likeness import ALIKE, traffic_profile
from tuning.evaluation.tuned import shipped_tuned
from tuning.specs.workloads import TraceOptions, make_workloads

pytestmark = pytest.mark.slow

EDGE6 = load_scenario("edge6")
TUNED = shipped_tuned(EDGE6)
AZURE = "azure_llm_2023/AzureLLMInferenceTrace_{}.csv.gz"


def replayed(path, load=("moderate",), **options):
    (workload,) = make_workloads(EDGE6, load, (), TraceOptions(trace=path, **options), None)
    return workload


def csv(folder, times_s, **tokens):
    """A workload that replays arrivals at these times, with prompts and outputs of so many tokens where they are given."""
    file = folder / "trace.csv"
    rows = "\n".join(",".join(map(repr, map(float, row))) for row in zip(times_s, *tokens.values(), strict=True))
    file.write_text(f"{','.join(('when', *tokens))}\n{rows}\n")
    columns = {f"trace_{name}_column": name for name in tokens}
    return replayed(file, trace_format="csv", trace_time_column="when", **columns)


@pytest.mark.parametrize(("kind", "name"), [("code", "azure-code"), ("conv", "azure-conversation")])
@pytest.mark.parametrize("load", ["moderate", "heavy"])
def test_a_public_trace_is_given_what_was_tuned_for_its_fit(kind, name, load, data_dir):
    workload = replayed(data_dir / AZURE.format(kind), (load,))
    choice = TUNED.choose(workload)
    assert choice.entry == f"{name} at {load}"
    note = _note_on_choice(workload.name, choice)
    assert f"those for {choice.entry} are used" in note
    assert choice.why in note


def test_a_trace_unlike_all_that_was_tuned_for_is_not_tuned(data_dir):
    workload = replayed(data_dir / "mooncake/conversation_trace.jsonl.gz", trace_format="mooncake")
    choice = TUNED.choose(workload)
    assert (choice.entry, choice.parameters) == (None, {})
    assert "not tuned, default parameters" in _note_on_choice(workload.name, choice)


@pytest.mark.parametrize("unit_s", [0.01, 1.0, 100.0])
def test_what_is_like_a_poisson_process_is_given_what_was_tuned_for_one_whatever_the_unit_of_time(unit_s, tmp_path):
    times_s = np.cumsum(np.random.default_rng(3).exponential(size=3000))
    assert TUNED.choose(csv(tmp_path, unit_s * times_s)).entry == "poisson at moderate"


@pytest.mark.parametrize("kind", ["code", "conv"])
def test_the_unit_of_time_changes_nothing(kind, data_dir, tmp_path):
    with gzip.open(data_dir / AZURE.format(kind), "rt") as file:
        rows = [line.split(",") for line in file.read().splitlines()[1:3001]]
    stamps = np.array([np.datetime64(row[0]) for row in rows])
    times_s = (stamps - stamps[0]) / np.timedelta64(1, "s")
    tokens = {"prompt": [float(row[1]) for row in rows], "output": [float(row[2]) for row in rows]}
    choices = [TUNED.choose(csv(tmp_path, unit_s * times_s, **tokens)).entry for unit_s in (0.125, 1.0, 64.0)]
    assert choices == [choices[0]] * 3
    assert choices[0].startswith("azure")


def test_a_load_of_its_own_chooses_among_the_loads(tmp_path):
    """At its own rate a trace is at the load that this comes to."""
    gaps_s = np.random.default_rng(4).exponential(size=2500)
    for share, name in ((0.28, "light"), (0.72, "moderate"), (1.05, "heavy")):
        file = tmp_path / f"{name}.csv"
        capacity = make_workloads(EDGE6, ["100%"], ["poisson"], TraceOptions(), None)[0].rate_rps
        file.write_text("\n".join(["timestamp", *(repr(t) for t in (np.cumsum(gaps_s) / (share * capacity)).tolist())]) + "\n")
        assert TUNED.choose(replayed(file, (), trace_format="csv")).entry == f"poisson at {name}"


def world(arrivals, load="moderate"):
    return make_workloads(EDGE6, [load], [arrivals], TraceOptions(), None)[0].scenario


def test_the_distance_of_two_workloads_has_no_direction_and_is_one_to_itself():
    found = [
        traffic_profile(world(arrivals)) for arrivals in ("poisson", "mmpp", "gamma:cv=3", "azure-conversation", "azure-code")
    ]
    assert [one.distance(one) for one in found] == [1] * len(found)
    for one, other in itertools.combinations(found, 2):
        assert one.distance(other) == pytest.approx(other.distance(one))
        assert one.distance(other) > ALIKE


def test_too_few_requests_say_nothing_of_bursts(tmp_path):
    own = traffic_profile(csv(tmp_path, [1.0, 2.0, 4.0]).scenario)
    assert math.isnan(own.dispersion)
    assert own.gap_variation == pytest.approx(1 / 3)
