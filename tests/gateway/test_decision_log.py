"""The decision log: what is written can be read, in bounded files, whatever the disk does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.log import writer as writing
from gateway.log.writer import LogWriter
from rllib_envs.decision_log.reader import read_log
from rllib_envs.decision_log.records import PATTERN, feedback_line, line_of
from rllib_envs.errors import InputError
from rllib_envs.scenarios.load import load_scenario
from tests.gateway.logs import log_text, request

EDGE6, PAPER3 = load_scenario("edge6"), load_scenario("paper3")


def _line(number: int, n: int = 6) -> Callable[[], bytes]:
    return lambda: line_of(request(n, number))


def _writer(folder: Path, *, file_bytes: int = 65_536, files: int = 100, waiting: int = 10_000) -> LogWriter:
    return LogWriter(folder, file_bytes, files, waiting, EDGE6)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Every line, in order of arrival, over several files; feedback by the id that it names, the last word counts."""
    log = _writer(tmp_path / "log")
    for number in range(200):
        log.write(EDGE6, _line(number))
    for score in (0.2, 0.9):
        log.write(EDGE6, lambda score=score: feedback_line("r7", score, 1.7e9))
    log.close()
    assert log.written == 202
    assert not log.lost
    found = read_log(tmp_path / "log")
    assert len(list((tmp_path / "log").iterdir())) > 1
    assert [x.id for x in found.requests] == [f"r{number}" for number in range(200)]
    assert (found.scenario, found.feedback, found.elsewhere, found.cut) == (EDGE6, {"r7": 0.9}, 0, 0)


def test_files_are_bounded_in_size_and_number(tmp_path: Path) -> None:
    """The newest lines stay; each file can be read alone; nobody else may read them."""
    log = _writer(tmp_path, files=3)
    for number in range(500):
        log.write(EDGE6, _line(number))
    log.close()
    files = sorted(tmp_path.glob(PATTERN))
    assert len(files) == 3
    longest = max(len(_line(number)()) for number in range(500))
    assert all(file.stat().st_size < 65_536 + longest and file.stat().st_mode & 0o077 == 0 for file in files)
    assert read_log(files[-1]).requests[-1].id == "r499"
    ids = [int(x.id[1:]) for x in read_log(tmp_path).requests]
    assert ids == list(range(ids[0], 500))


def test_another_cluster_begins_anew(tmp_path: Path) -> None:
    """A reload changes the experts: lines about the former ones are counted, not taken for the new ones'."""
    log = _writer(tmp_path)
    for number in range(5):
        log.write(EDGE6, _line(number))
    for number in range(5, 8):
        log.write(PAPER3, _line(number, PAPER3.n_experts))
    log.close()
    found = read_log(tmp_path)
    assert (found.scenario, len(found.requests), found.elsewhere) == (PAPER3, 3, 5)


def _two_processes(folder: Path, monkeypatch: pytest.MonkeyPatch, files: int) -> list[LogWriter]:
    made: list[LogWriter] = []
    for process in (11, 22):
        monkeypatch.setattr(writing.os, "getpid", lambda process=process: process)
        made.append(_writer(folder, files=files))
    return made


def test_several_processes_change_to_another_cluster_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What each logs before and after counts as what it is about, though files are read one after the other."""
    logs = _two_processes(tmp_path, monkeypatch, files=10)
    for number in range(4):
        logs[number % 2].write(EDGE6, _line(number))
    for number in range(4, 10):
        logs[number % 2].write(PAPER3, _line(number, PAPER3.n_experts))
    for log in logs:
        log.close()
    found = read_log(tmp_path)
    assert [x.id for x in found.requests] == [f"r{number}" for number in range(4, 10)]
    assert (found.scenario, found.elsewhere) == (PAPER3, 4)


def test_a_process_whose_file_others_removed_begins_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process writes much and removes old files, among them the one that the other has open."""
    quiet, busy = _two_processes(tmp_path, monkeypatch, files=2)
    quiet.write(EDGE6, _line(0))
    while not quiet.written:
        pass
    for number in range(1, 500):
        busy.write(EDGE6, _line(number))
    busy.close()
    assert not list(tmp_path.glob("decisions-*-11-*"))
    quiet.write(EDGE6, _line(500))
    quiet.close()
    assert len(list(tmp_path.glob(PATTERN))) == 2
    ids = [x.id for x in read_log(tmp_path).requests]
    assert ids[-2:] == ["r499", "r500"]
    assert "r0" not in ids


def test_a_full_disk_loses_lines_but_never_half_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the disk takes in part is taken back; lines are lost and counted until it has room again."""
    monkeypatch.setattr(writing, "_REST_S", 0.0)
    write, room = os.write, [10**9]

    def bounded(file: int, data: Any) -> int:
        if room[0] <= 0:
            raise OSError(28, "No space left on device")
        taken = write(file, data[: min(len(data), room[0], 300)])
        room[0] -= taken
        return taken

    monkeypatch.setattr(writing.os, "write", bounded)
    log = _writer(tmp_path)
    room[0] = 3 * len(_line(0)()) + 500  # as if the disk were nearly full
    for number in range(10):
        log.write(EDGE6, _line(number))
    while log.written + log.lost.total() < 10:
        pass
    room[0] = 10**9
    for number in range(10, 15):
        log.write(EDGE6, _line(number))
    log.close()
    assert log.lost == {"disk": 7}
    assert [x.id for x in read_log(tmp_path).requests] == ["r0", "r1", "r2", *(f"r{number}" for number in range(10, 15))]


def test_who_writes_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk hangs, lines beyond the bound are lost at once, and counted."""
    log = _writer(tmp_path, waiting=8)
    gate, write = writing.threading.Event(), os.write

    def hanging(file: int, data: Any) -> int:
        gate.wait(30)
        return write(file, data)

    monkeypatch.setattr(writing.os, "write", hanging)
    for number in range(100):
        log.write(EDGE6, _line(number))
    assert log.lost["full"] >= 91  # eight wait, one is with the disk
    gate.set()
    log.close()
    assert log.written == 100 - log.lost["full"]


def test_the_end_waits_as_long_as_lines_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, and however many wait."""
    monkeypatch.setattr(writing, "_CLOSING_S", 0.5)
    log, write = _writer(tmp_path, waiting=60), os.write

    def slow(file: int, data: Any) -> int:
        time.sleep(0.02)
        return write(file, data)

    monkeypatch.setattr(writing.os, "write", slow)
    for number in range(60):
        log.write(EDGE6, _line(number))
    log.close()
    assert log.written == 60
    assert not log.lost
    assert len(read_log(tmp_path).requests) == 60


def test_what_the_end_does_not_write_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk hangs for good, and a line comes after the end."""
    monkeypatch.setattr(writing, "_CLOSING_S", 0.1)
    log, gate, write = _writer(tmp_path), writing.threading.Event(), os.write

    def hanging(file: int, data: Any) -> int:
        gate.wait(30)
        return write(file, data)

    monkeypatch.setattr(writing.os, "write", hanging)
    for number in range(20):
        log.write(EDGE6, _line(number))
    log.close()
    log.write(EDGE6, _line(20))
    assert (log.written, log.lost) == (0, {"closed": 21})
    gate.set()


def test_a_line_that_a_killed_process_left_is_counted(tmp_path: Path) -> None:
    """The rest of the log is read."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(log_text(EDGE6, request(6, 0), request(6, 1))[:-40])
    found = read_log(path)
    assert (len(found.requests), found.cut) == (1, 1)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"probability": 1.5}, "request.probability: Input should be less than or equal to 1 (got 1.5)"),
        ({"expert": 6, "outcome": None}, "expert 6: the log's cluster has 6, from 0 to 5"),
        ({"scores": [1.0]}, "scores has 1 entries: must have 7"),
        ({"service": "gold"}, "service = 'gold': the log's cluster has default"),
        ({"outcome": None}, "outcome and expert: both or neither must be null"),
        ({"colour": 1}, "request.colour: Unexpected keyword argument (got 1)"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, fields: dict[str, Any], said: str) -> None:
    """File, line, field, value and what is allowed, in one line."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(log_text(EDGE6, request(6, 0), request(6, 1, **fields)))
    with pytest.raises(InputError) as error:
        read_log(path)
    assert str(error.value) == f"{path}:3: {said}"


def test_what_is_no_log_is_said_so(tmp_path: Path) -> None:
    """No file, no JSON, no beginning, no requests."""
    path = tmp_path / "log.jsonl"
    for text, said in (
        (b"", f"log {path}: has no requests"),
        (b"{\n", f"{path}:1: not JSON: "),
        (json.dumps(request(6, 0)).encode() + b"\n", f"{path}:1: a log begins with a line of kind 'start'"),
        (log_text(EDGE6), f"log {path}: has no requests"),
    ):
        path.write_bytes(text)
        with pytest.raises(InputError) as error:
            read_log(path)
        assert str(error.value).startswith(said)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="has no files"):
        read_log(empty)
