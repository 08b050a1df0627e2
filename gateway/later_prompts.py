"""How much of an engine's time the prompts of later requests will take, by those of late.

A roll-out ends with the requests that have come. Prompts of those that come later are computed between the tokens of those who
run. If that takes a share s of the engine's time, tokens come 1 / (1 - s) times as slowly.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_WINDOW_S = 10.0  # of the moving average
_MOST = 0.9


class LaterPrompts:
    """The share of time that prompts have taken of late at each of N engines.

    Args:
        n_experts: N.
        gateways: so many send there, each as much as this one.
    """

    def __init__(self, n_experts: int, gateways: int) -> None:
        self._sum_s = np.zeros(n_experts)  # each weighs less by the time since
        self._gateways = gateways
        self._first_s = math.inf
        self._last_s = -math.inf

    def note(self, expert: int, prefill_s: float, now_s: float) -> None:
        """A request has been sent, whose prompt takes so many seconds of the engine's time."""
        self._first_s = min(self._first_s, now_s)
        self._sum_s *= math.exp(-max(now_s - self._last_s, 0.0) / _WINDOW_S)
        self._last_s = max(self._last_s, now_s)
        self._sum_s[expert] += prefill_s * self._gateways

    def share(self, now_s: float) -> NDArray[np.float64]:
        """(N,) between 0 and .9."""
        if now_s <= self._first_s:
            return np.zeros(self._sum_s.size)
        window_s = -_WINDOW_S * math.expm1(-(now_s - self._first_s) / _WINDOW_S)
        decayed_s = self._sum_s * math.exp(-max(now_s - self._last_s, 0.0) / _WINDOW_S)
        return np.minimum(decayed_s / max(window_s, 1.0), _MOST)
