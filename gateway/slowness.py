"""A policy that takes too long rests for a while."""

from __future__ import annotations

MOST_S = 0.005
"""A decision that takes longer is slow."""

_IN_A_ROW = 3  # slow ones that make it rest: another process may have had the core during one
_FIRST_REST_S, _LONGEST_REST_S = 1.0, 60.0


class Slowness:
    """When a policy rests: after several slow decisions in a row, each time for twice as long.

    A slow decision itself stands, as nothing is faster by then than the answer that is there.
    """

    def __init__(self) -> None:
        self.slow = 0  # decisions that took too long
        self._in_a_row = 0
        self._rests_until_s, self._rest_s = -1.0, _FIRST_REST_S

    def rests(self, now_s: float) -> bool:
        """Whether the policy rests now."""
        return now_s < self._rests_until_s

    def note(self, took_s: float, now_s: float) -> None:
        """A decision of the policy took so long; after a rest one slow decision is enough for the next."""
        if took_s <= MOST_S:
            self._in_a_row, self._rest_s = 0, _FIRST_REST_S
            return
        self.slow += 1
        self._in_a_row += 1
        if self._in_a_row >= _IN_A_ROW:
            self._rests_until_s = now_s + self._rest_s
            self._rest_s = min(2 * self._rest_s, _LONGEST_REST_S)
