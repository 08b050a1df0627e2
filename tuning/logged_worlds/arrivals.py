"""An arrival process fitted to the times of a log: gamma, or two rates in turn (MMPP), whichever spreads counts as the log does.

What queues feel is how counts vary from window to window. The index of dispersion is their variance over their mean, in windows
of a length. Of a two-state MMPP of mean rate ``rate`` it is ``1 + A*(1 - (1 - exp(-k*t))/(k*t))``, where ``k`` is the rate at
which the state is forgotten, and ``A = 2*(variance of the rate)/(k*rate)`` (Heffes and Lucantoni 1986). The fit finds both.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rllib_envs.scenario import Arrivals
from rllib_envs.workload.arrivals import arrival_times

_LENGTHS = 8  # window lengths
_FEWEST, _LEAST_WINDOWS, _LEAST_COUNT = 100, 8, 4  # requests of a log; windows of a length; requests in a window
_SIMULATED, _SEED = 20_000, 0
_RATES = 40  # values of k that are tried
_BURST_SHARE, _MOST_OF_RATIO = 0.25, 0.8  # share of time in bursts; a quiet rate of 0 would be at 1
_CV = (0.1, 5.0)
_LEAST = 1e-3  # of a dispersion: times on a grid have 0


def fit_arrivals(times_s: NDArray[np.float64]) -> Arrivals:
    """Fit a process; the same times give the same process.

    Args:
        times_s: (M,) ascending.
    """
    gaps = np.diff(times_s)
    mean = float(gaps.mean()) if gaps.size else 0.0
    cv = float(gaps.std() / mean) if mean > 0 else 1.0
    gamma = Arrivals(kind="gamma", cv=min(max(cv, _CV[0]), _CV[1]))
    span_s = float(times_s[-1] - times_s[0])
    if times_s.size < _FEWEST or span_s <= 0:
        return gamma
    rate_rps = (times_s.size - 1) / span_s
    lengths_s = np.geomspace(_LEAST_COUNT / rate_rps, span_s / _LEAST_WINDOWS, _LENGTHS)
    measured = dispersion(times_s, lengths_s).clip(_LEAST)
    bursts = _two_rates(measured, lengths_s, rate_rps)
    candidates = [gamma] if bursts is None else [gamma, bursts]
    return min(candidates, key=lambda arrivals: _error(arrivals, measured, lengths_s, rate_rps))


def dispersion(times_s: NDArray[np.float64], lengths_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """(K,) variance over mean of the counts in windows of each length, side by side from the first time on.

    Args:
        times_s: (M,) ascending.
        lengths_s: (K,) with two windows of each at least.
    """
    found = np.empty(lengths_s.size)
    for i, length_s in enumerate(lengths_s):
        windows = int((times_s[-1] - times_s[0]) / length_s)
        edges = times_s[0] + length_s * np.arange(windows + 1)
        counts = np.diff(np.searchsorted(times_s, edges))
        found[i] = counts.var(ddof=1) / counts.mean() if counts.sum() else 1.0
    return found


def _two_rates(measured: NDArray[np.float64], lengths_s: NDArray[np.float64], rate_rps: float) -> Arrivals | None:
    """The MMPP with the dispersion nearest to the measured one; None where counts spread no more than a Poisson process's."""
    best, found = math.inf, None
    for k in np.geomspace(0.5 / lengths_s[-1], 2 / lengths_s[0], _RATES):
        x = k * lengths_s
        shape = 1 - (1 - np.exp(-x)) / x
        weight = shape / np.square(measured)
        height = float((weight * (measured - 1)).sum() / (weight * shape).sum())
        if height <= 0:
            continue
        error = float(np.square(np.log((1 + height * shape) / measured)).sum())
        if error < best:
            best, found = error, (float(k), height)
    if found is None:
        return None
    k, height = found
    relative = height * k / (2 * rate_rps)  # variance of the rate over its square
    share = min(_BURST_SHARE, _MOST_OF_RATIO**2 / (relative + _MOST_OF_RATIO**2))
    spread = math.sqrt(relative / (share * (1 - share)))
    cycle_s = max(1 / (k * share * (1 - share)), 1 / rate_rps)
    return Arrivals(kind="mmpp", burst_ratio=1 + spread / (1 - share * spread), burst_share=share, cycle_s=cycle_s)


def _error(arrivals: Arrivals, measured: NDArray[np.float64], lengths_s: NDArray[np.float64], rate_rps: float) -> float:
    """Squared error of the log dispersion of a process."""
    count = max(_SIMULATED, 4 * math.ceil(rate_rps * lengths_s[-1]))
    times_s = arrival_times(arrivals, rate_rps, count, np.random.default_rng(_SEED))
    found = dispersion(times_s, lengths_s)
    return float(np.square(np.log(found.clip(_LEAST) / measured)).sum())
