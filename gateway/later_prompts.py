"""How much of an engine's time the prompts of later requests will take, by those of late.

A roll-out ends with the requests that have come. Prompts of those that come later are computed between the tokens of those who
run. If that takes a share s of the engine's time, tokens come 1 / (1 - s) times as slowly. An engine with more work than time
shares its time between prompts and tokens as its requests do.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_WINDOW_S = 10.0  # of the moving sums
_LEAST_S = 1.0  # of the window, as the first requests come


class LaterPrompts:
    """The share of time that prompts take of late at each of N engines.

    Args:
        n_experts: N.
        gateways: so many send there, each as much as this one.
    """

    def __init__(self, n_experts: int, gateways: int) -> None:
        self._sums_s = np.zeros((2, n_experts))  # of prompts and of tokens; each weighs less by the time since
        self._gateways = gateways
        self._first_s = math.inf
        self._last_s = -math.inf

    def note(self, expert: int, prompt_s: float, tokens_s: float, now_s: float) -> None:
        """A request has been sent, whose prompt and tokens take at least so many seconds of the engine's time."""
        self._first_s = min(self._first_s, now_s)
        self._sums_s *= self._weight(now_s)
        self._last_s = max(self._last_s, now_s)
        self._sums_s[:, expert] += prompt_s * self._gateways, tokens_s * self._gateways

    def share(self, now_s: float) -> NDArray[np.float64]:
        """(N,) from 0 to below 1."""
        if now_s <= self._first_s:
            return np.zeros(self._sums_s.shape[1])
        window_s = max(-_WINDOW_S * math.expm1(-(now_s - self._first_s) / _WINDOW_S), _LEAST_S)
        prompts_s, tokens_s = self._sums_s * self._weight(now_s)
        return prompts_s / np.maximum(prompts_s + tokens_s, window_s)

    def _weight(self, now_s: float) -> float:
        """Of what was sent until the last time, now."""
        return math.exp(-max(now_s - self._last_s, 0.0) / _WINDOW_S)
