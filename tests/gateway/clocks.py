"""Clocks that measure decisions alike on every machine: a busy one makes decisions slow, and a slow policy rests."""

from __future__ import annotations

from typing import Any

from gateway.decider import Decider


class Stopwatch:
    """A clock that moves by so much at each look."""

    def __init__(self, step_s: float = 0.0) -> None:
        self.step_s, self.time_s = step_s, 0.0

    def __call__(self) -> float:
        self.time_s += self.step_s
        return self.time_s


def steady_decider(*arguments: Any, **named: Any) -> Decider:
    """A decider for which no decision is slow."""
    return Decider(*arguments, **named, clock=Stopwatch())
