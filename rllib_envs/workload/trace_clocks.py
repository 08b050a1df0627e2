"""The time formats of traces, ISO 8601 or numbers, converted to seconds from the first row."""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

ClockKind = Literal["iso", "s", "ms", "iso or s"]
"""ISO 8601, seconds, milliseconds; ISO 8601 or seconds, decided by the first row."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_UNITS = {"s": "seconds", "ms": "milliseconds", "iso or s": "seconds"}
_Times = TypeVar("_Times", float, NDArray[Any])


class Clock:
    """The times of one trace. Parsed times are whole microseconds since 1970 (ISO 8601; UTC without an offset) or numbers."""

    def __init__(self, kind: ClockKind) -> None:
        self.origin: float | None = None  # the first time, as parsed
        self.iso = kind == "iso"
        self.rule = "must be an ISO 8601 time" if self.iso else f"must be a finite number of {_UNITS[kind]}, at least 0"
        self._undecided = kind == "iso or s"
        self._scale = 1e-3 if kind == "ms" else 1.0

    def parse(self, cell: str) -> float | None:
        """Parse a time; None if the cell is not one (``rule`` says what it must be). The first one is the origin."""
        if self._undecided:
            self._undecided = False
            self.iso = number(cell) is None
            if self.iso:
                self.rule = "must be an ISO 8601 time or a number of seconds"
        time = _microseconds(cell) if self.iso else number(cell)
        if time is None or not (self.iso or 0 <= time < math.inf):
            return None
        if self.origin is None:
            self.origin = time
        return time

    def are_valid(self, times: NDArray[Any]) -> bool:
        """Whether all of these values, parsed elsewhere, are times."""
        return self.iso or bool((np.isfinite(times) & (times >= 0)).all())

    def since_origin_s(self, time: _Times) -> _Times:
        """Seconds from the first row."""
        if self.origin is None:
            raise ValueError("no time was parsed yet")
        return (time - self.origin) / 1e6 if self.iso else (time - self.origin) * self._scale


def number(cell: str) -> float | None:
    """A decimal number as in data files; None for anything else. Python's digits with underscores are not accepted."""
    with suppress(ValueError):
        if "_" not in cell:
            return float(cell)
    return None


def _microseconds(cell: str) -> int | None:
    with suppress(ValueError):
        stamp = datetime.fromisoformat(cell.strip())
        return ((stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND
    return None
