"""What is said of a replay before its figures, and what becomes of it in tables and files."""

from __future__ import annotations

import json
from dataclasses import replace

import pandas as pd
import pytest

from rllib_envs.errors import InputError
from rllib_envs.scenario import with_workload
from rllib_envs.scenarios.load import load_scenario
from tuning.evaluation.arrival_notes import notes_on_arrivals
from tuning.simulate import Options, run
from tuning.specs.workloads import TraceOptions, make_workloads

EDGE2 = replace(load_scenario("edge2"), capacity_rps=4.0)
ROWS = [(0.5 * i + (300 if i >= 100 else 0), 9000 if i % 4 == 0 else 50 + i, 20 + i % 30) for i in range(200)]


@pytest.fixture
def trace(tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("timestamp,p,d\n" + "".join(f"{t},{p},{d}\n" for t, p, d in ROWS))
    return TraceOptions(trace=file, trace_format="csv", trace_prompt_column="p", trace_output_column="d")


def notes(trace, loads=(), requests=None):
    return notes_on_arrivals(make_workloads(EDGE2, loads, (), trace, requests))


def test_a_replay_of_all_says_so_and_that_seeds_share_it(trace):
    replayed, too_long = notes(trace)
    assert "all of the window, 200 requests in 400 s, 0.50/s; at their own rate; output lengths from the trace." in replayed
    assert "Every seed replays the same requests" in replayed
    assert too_long.startswith("50 of 200 requests of trace t.csv have prompts longer than any expert of edge2 takes (")


def test_a_part_is_a_part_for_each_seed(trace):
    (replayed, _) = notes(replace(trace, trace_lengths="catalogue"), ("3",), 40)
    assert "40 consecutive requests for each seed, from a random one on" in replayed
    assert "brought to the rate of the load; output lengths from the catalogue, as asked for." in replayed
    assert "Every seed" not in replayed


def test_a_trace_without_lengths_says_where_they_come_from(trace):
    assert "for the trace has none" in notes(replace(trace, trace_output_column=None))[0]


def test_a_trace_of_which_nothing_fits_is_refused(trace):
    trace.trace.write_text("timestamp,p,d\n0,9000,5\n1,9000,5\n")
    with pytest.raises(InputError, match="all prompts are longer than any expert of edge2 takes"):
        notes(trace)


def test_arrivals_that_fit_need_no_word_and_those_of_azure_conversation_some():
    assert notes_on_arrivals(make_workloads(EDGE2, (), (), TraceOptions(), None)) == []
    (said,) = notes_on_arrivals(make_workloads(EDGE2, (), ("azure-conversation",), TraceOptions(), None))
    assert "% of the requests of azure-conversation have prompts longer than" in said


def test_all_of_a_trace_is_replayed_whatever_the_scenario_says_of_its_own_arrivals(trace):
    scenario = with_workload(EDGE2, requests=7)
    (whole,), (part,) = (make_workloads(scenario, (), (), trace, requests) for requests in (None, 30))
    assert (whole.scenario.workload.requests, part.scenario.workload.requests) == (None, 30)


def test_the_status_is_in_the_file_and_the_share_in_the_summary(trace, tmp_path, capsys):
    run(Options(scenario="edge2", trace=trace, router="join-shortest-queue", out=tmp_path / "o.csv"))
    printed = capsys.readouterr().out
    assert "too long, %" in printed
    assert "status too_long, not counted in QoS." in printed.splitlines()[1]
    table, summary = pd.read_csv(tmp_path / "o.csv"), json.loads((tmp_path / "o.json").read_text())
    assert (table.status == "too_long").sum() == 50
    assert summary["metrics"]["too_long_rate"] == 0.25
    assert summary["metrics"]["qos"] == pytest.approx(table.qos.mean())  # missing where there is nothing to count
    assert summary["metrics"]["drop_rate"] == summary["metrics"]["rejected_rate"] == 0
    assert len(summary["notes"]) == 2


def test_what_is_replayed_comes_at_the_rate_asked_for(trace, tmp_path):
    """The file has a long pause, so that its parts are faster than the whole."""
    for seed in (1, 2):
        out = tmp_path / f"{seed}.csv"
        run(Options(scenario="edge2", trace=trace, load="3", requests=41, seed=seed, router="least-work", out=out))
    first, second = (pd.read_csv(tmp_path / f"{seed}.csv") for seed in (1, 2))
    for table in (first, second):
        assert 40 / table.arrival_s.max() == pytest.approx(3)
    assert first.prompt_tokens.tolist() != second.prompt_tokens.tolist()
