"""What was left out of a trace, and what was done to its times, stands in what the commands print and write."""

import json
from pathlib import Path
from typing import Any

import pytest

import edgeroute

pytestmark = pytest.mark.slow

FAILS = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + "".join(
    f"{i},m,{prompt},{output},{prompt + output},x\n"
    for i, (prompt, output) in enumerate([(100, 0), (100, 0), (0, 7), (100, 0), (120, 9), (130, 0), (140, 8)])
)
FAILED = "Trace fails.csv (burstgpt): 4 of 7 rows were left out as failed (0 output tokens)."
EMPTY = "Trace fails.csv (burstgpt): 1 of 7 rows were left out as empty (0 prompt tokens)."
TICKS = "its clock ticks every 3 s; arrivals are spread uniformly within each tick"


@pytest.fixture
def fails(tmp_path: Path) -> Path:
    path = tmp_path / "fails.csv"
    path.write_text(FAILS)
    return path


@pytest.fixture
def floods(tmp_path: Path) -> Path:
    path = tmp_path / "floods.jsonl"
    rows = [f'{{"timestamp": {3000 * (i // 5)}, "input_length": 50, "output_length": 5}}\n' for i in range(50)]
    path.write_text("".join(rows))
    return path


def command(*arguments: object) -> None:
    assert edgeroute.main(list(map(str, arguments))) == 0


def test_simulate_says_what_was_left_out(fails: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = fails.with_name("o.csv")
    command("simulate", "--trace", fails, "--out", out)
    printed = capsys.readouterr().out.splitlines()
    assert {FAILED, EMPTY} <= set(printed)
    trace = json.loads(out.with_suffix(".json").read_text())["trace"]
    assert trace == {
        "path": str(fails),
        "format": "burstgpt",
        "requests": 2,
        "skipped": {"failed": 4, "empty": 1},
        "tick_s": None,
    }


def test_evaluate_says_what_was_left_out_and_how_times_were_spread(
    fails: Path, floods: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluated(trace: Path, *options: str) -> dict[str, Any]:
        out = trace.with_suffix("")
        arguments = ("--seeds", 2, "--routers", "join-shortest-queue", "--jobs", 1, "--out", out, *options)
        command("evaluate", "--trace", trace, *arguments)
        assert all(note in (out / "results.md").read_text() for note in json.loads((out / "results.json").read_text())["notes"])
        return json.loads((out / "results.json").read_text())

    results = evaluated(fails)
    assert {FAILED, EMPTY} <= set(results["notes"])
    assert results["comparisons"][0]["trace"]["skipped"] == {"failed": 4, "empty": 1}
    assert FAILED in capsys.readouterr().out
    spread = evaluated(floods)
    assert any(TICKS in note for note in spread["notes"])
    assert spread["comparisons"][0]["trace"]["tick_s"] == 3


def test_without_jitter_nothing_is_said_and_arrivals_are_the_files(floods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times: dict[str, list[str]] = {}
    for option in ("--no-trace-jitter", "--trace-jitter"):
        out = floods.with_name("o.csv")
        command("simulate", "--trace", floods, option, "--out", out, "--router", "join-shortest-queue")
        assert (TICKS in capsys.readouterr().out) == (option == "--trace-jitter")
        times[option] = [line.split(",")[0] for line in out.read_text().splitlines()[1:]]
    assert [float(time) for time in times["--no-trace-jitter"]] == [3.0 * (i // 5) for i in range(50)]
    assert len(set(times["--trace-jitter"])) == 50


def test_other_arrivals_have_no_trace(tmp_path: Path) -> None:
    command("simulate", "--smoke", "--out", tmp_path / "o.csv")
    assert json.loads((tmp_path / "o.json").read_text())["trace"] is None
