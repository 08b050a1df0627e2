"""What is said of a long run, on a terminal and in a log."""

import io

import pytest

import tuning.output.progress as progress_module
from tuning.output.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until told."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then_and_the_last_one(clock):
    stream = io.StringIO()
    progress = Progress("cells", 100, stream=stream)
    for _ in range(100):
        clock[0] += 1
        progress.advance()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "cells: 10 of 100 in 10 s, about 1 min 30 s left"
    assert lines[-1] == "cells: 100 of 100 in 1 min 40 s"
    assert len(lines) == 10
    assert "\r" not in stream.getvalue()


def test_a_terminal_gets_one_line_that_is_rewritten(clock):
    stream = Terminal()
    progress = Progress("cells", 3, stream=stream)
    for _ in range(3):
        clock[0] += 3000
        progress.advance()
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().split("\r\x1b[K")[1:] == [
        "cells: 1 of 3 in 50 min 0 s, about 1 h 40 min left",
        "cells: 2 of 3 in 1 h 40 min, about 50 min 0 s left",
        "cells: 3 of 3 in 2 h 30 min\n",
    ]


def test_what_was_finished_before_does_not_count_as_fast(clock):
    stream = Terminal()
    progress = Progress("cells", 12, 10, stream=stream)
    clock[0] += 7
    progress.advance()
    assert stream.getvalue().startswith("cells: 10 of 12 were finished before\n")
    assert stream.getvalue().endswith("cells: 11 of 12 in 7 s, about 7 s left")
