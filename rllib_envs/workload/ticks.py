"""The time grid of a trace with a coarse clock: its detection, and the spreading of arrivals within each tick."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_MIN_TICK_S = 0.01  # a smaller tick is shorter than an engine's iteration
_MIN_TIES = 0.05  # of the requests: fewer equal times may be chance
_MIN_TIMES = 5  # distinct ones: with fewer, the gaps may be multiples of one by chance
_LOW = 0.05  # quantile of the gaps that is taken for one tick; it tolerates a few odd gaps below it
_SAME = 1.25  # gaps up to this many times that one are one tick too
_OFF_GRID = 0.02  # of a tick: clocks are not quite even (Mooncake's ticks of 3 s are 2.997 to 3.003 s)
_ON_GRID = 0.9  # of the gaps


def grid_tick_s(arrival_s: NDArray[np.float64]) -> float | None:
    """The tick, s, of the grid of the times (M,), at least 0.01 s. None: they lie on no such grid.

    Nine in ten gaps between distinct times must be whole multiples of the tick.
    """
    gaps = np.diff(arrival_s)
    gaps = gaps[gaps > 0]
    if gaps.size == 0:
        return None
    low = float(np.quantile(gaps, _LOW, method="lower"))
    tick = float(np.median(gaps[(gaps >= low) & (gaps <= _SAME * low)]))
    multiples = gaps / tick
    on_grid = np.abs(multiples - np.rint(multiples)) <= _OFF_GRID
    return tick if tick >= _MIN_TICK_S and on_grid.mean() >= _ON_GRID else None


def is_quantised(arrival_s: NDArray[np.float64]) -> bool:
    """Whether the times (M,) come from a coarse clock: on a grid, at least 5 distinct, one in 20 equal to the one before."""
    distinct = 1 + np.count_nonzero(np.diff(arrival_s))
    ties = (len(arrival_s) - distinct) / len(arrival_s)
    return bool(distinct >= _MIN_TIMES and ties >= _MIN_TIES) and grid_tick_s(arrival_s) is not None


def spread(arrival_s: NDArray[np.float64], tick_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """The times (M,), ascending, each shifted later by a uniform part of the tick. The order of the requests stays."""
    return np.sort(arrival_s + tick_s * rng.random(len(arrival_s)))
