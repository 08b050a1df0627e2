"""Progress of a long run: one rewritten line on a terminal, occasional lines in a log."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_LOG_INTERVAL_S = 10.0


class Progress:
    """Reports finished pieces of work and the estimated time left, on stderr."""

    def __init__(self, label: str, total: int, done: int = 0, stream: TextIO | None = None) -> None:
        """Start the clock with ``done`` of ``total`` pieces finished in an earlier run."""
        self._label, self._total, self._done, self._before = label, total, done, done
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._start_s = self._shown_s = time.monotonic()
        if done:
            self._stream.write(f"{label}: {done} of {total} were finished before\n")

    def advance(self) -> None:
        """One more piece is finished."""
        self._done += 1
        now_s = time.monotonic()
        last = self._done == self._total
        if self._terminal:
            self._stream.write(f"\r\x1b[K{self._line(now_s)}" + ("\n" if last else ""))
        elif last or now_s - self._shown_s >= _LOG_INTERVAL_S:
            self._stream.write(self._line(now_s) + "\n")
            self._shown_s = now_s
        self._stream.flush()

    def interrupted(self, advice: str) -> None:
        """The run ends early: say what that means."""
        self._stream.write(
            f"{chr(10) if self._terminal else ''}{self._label}: {self._done} of {self._total} are finished; {advice}\n"
        )
        self._stream.flush()

    def _line(self, now_s: float) -> str:
        elapsed_s = now_s - self._start_s
        left_s = elapsed_s / (self._done - self._before) * (self._total - self._done)
        rest = f", about {_duration(left_s)} left" if self._done < self._total else ""
        return f"{self._label}: {self._done} of {self._total} in {_duration(elapsed_s)}{rest}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
