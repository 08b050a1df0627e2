"""A circuit breaker: an expert that fails is left alone for a while, then tried with one request."""

from __future__ import annotations

from enum import Enum

from gateway.config import Breaker


class Circuit(Enum):
    """What may go through."""

    CLOSED = 0  # all
    HALF_OPEN = 1  # one request, which decides
    OPEN = 2  # none


class CircuitBreaker:
    """Counts the failures of one expert, one after the other. Times are seconds of any steady clock."""

    def __init__(self, settings: Breaker) -> None:
        self._settings = settings
        self._failures = 0
        self._open_until_s: float | None = None
        self._trial_until_s: float | None = None

    def state(self, now_s: float) -> Circuit:
        """What may go through now."""
        if self._open_until_s is None:
            return Circuit.CLOSED
        return Circuit.OPEN if now_s < self._open_until_s else Circuit.HALF_OPEN

    def admits(self, now_s: float) -> bool:
        """Whether a request may be sent now; of a half-open one only until there is a trial."""
        state = self.state(now_s)
        waiting = self._trial_until_s is not None and now_s < self._trial_until_s
        return state is Circuit.CLOSED or (state is Circuit.HALF_OPEN and not waiting)

    def sent(self, now_s: float) -> None:
        """A request goes there: of a half-open breaker the trial, which ends by itself if nobody tells how it went."""
        if self._open_until_s is not None:
            self._trial_until_s = now_s + self._settings.period_s

    def succeeded(self) -> None:
        """It answered."""
        self._failures = 0
        self._open_until_s = self._trial_until_s = None

    def failed(self, now_s: float, *, at_once: bool = False, period_s: float | None = None) -> None:
        """It failed; ``at_once``: one failure is enough; ``period_s``: how long to leave it alone, if it said so itself."""
        self._failures += 1
        if at_once or self._open_until_s is not None or self._failures >= self._settings.failures:
            self._open_until_s = now_s + (self._settings.period_s if period_s is None else period_s)
            self._trial_until_s = None
