"""Means over seeds with their uncertainty, differences between routers on the same seeds, and aggregates over learner seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

CONFIDENCE = 0.95
RESAMPLES = 2000
"""Draws of a bootstrap: enough for the ends of a 95 % interval to two digits (Efron and Tibshirani, 1993, chapter 19)."""

Statistic = Callable[..., NDArray[np.float64]]
"""A statistic of one or more samples along ``axis``, as ``scipy.stats.bootstrap`` calls it."""

_TRIMMED = 0.25  # from either end: what is left is the middle half


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A mean and half the width of its 95 % confidence interval; NaN where the sample does not tell."""

    mean: float
    half_width: float

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half_width

    @property
    def excludes_zero(self) -> bool:
        """Whether the sign of the mean is clear at this confidence."""
        return abs(self.mean) > self.half_width


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """An estimate and the ends of its 95 % confidence interval, which may be asymmetric; NaN where unknown."""

    estimate: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> Interval:
    """Student's t interval of the mean of independent values, one for each seed; values that are NaN are left out."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    n = known.size
    mean = float(known.mean()) if n else math.nan
    if n < 2:
        return Interval(mean=mean, half_width=math.nan)
    error = float(known.std(ddof=1)) / math.sqrt(n)
    return Interval(mean=mean, half_width=float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * error)


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Interval of the mean of ``values - baseline``, paired by seed, so that the effect of the episode cancels.

    Raises:
        ValueError: different numbers of seeds.
    """
    _check_pairs(values, baseline)
    return mean_interval((np.asarray(values, np.float64) - np.asarray(baseline, np.float64)).tolist())


def relative_difference(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Interval of ``mean(values) / mean(baseline) - 1``, seed by seed (those known to both); NaN where the latter is 0.

    The half width is that of the linearised ratio: with R the ratio of the means, of the mean of ``values - R * baseline`` over
    the baseline's mean (Cochran, Sampling Techniques, 3rd ed., 1977, chapter 6).

    Raises:
        ValueError: different numbers of seeds.
    """
    _check_pairs(values, baseline)
    own, other = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    known = ~np.isnan(own) & ~np.isnan(other)
    own, other = own[known], other[known]
    if other.size == 0 or other.mean() == 0:
        return Interval(mean=math.nan, half_width=math.nan)
    ratio = own.mean() / other.mean()
    return Interval(mean=float(ratio) - 1, half_width=mean_interval(((own - ratio * other) / other.mean()).tolist()).half_width)


def family_interval(interval: Interval, n: int, comparisons: int) -> Interval:
    """Widen an interval of a mean of ``n`` values for multiple comparisons (Bonferroni).

    All intervals hold at once with a confidence of at least 95 %.

    Args:
        interval: Student's t interval, as ``mean_interval`` gives it.
        n: values that it comes from.
        comparisons: how many intervals there are, 1 or more.
    """
    if n < 2:
        return interval
    tail = (1 - CONFIDENCE) / 2
    wider = float(stdtrit(n - 1, 1 - tail / comparisons) / stdtrit(n - 1, 1 - tail))
    return Interval(mean=interval.mean, half_width=wider * interval.half_width)


def bootstrap_interval(
    samples: Sequence[Sequence[float]], statistic: Statistic, rng: np.random.Generator, *, resamples: int = RESAMPLES
) -> Bounds:
    """Compute a statistic with its stratified percentile bootstrap interval.

    Each sample is resampled within itself: with a sample of learner seeds for each task, this is the stratified bootstrap of
    Agarwal et al. (2021), "Deep reinforcement learning at the edge of the statistical precipice", arXiv 2108.13264.

    Args:
        samples: one or more, of one value or more each.
        statistic: of all samples together; called with arrays and ``axis``.
        rng: what is drawn comes from it.
        resamples: number of draws.

    Returns:
        The statistic and its interval, whose ends are NaN if some sample has fewer than two values.
    """
    estimate, low, high = _bootstrap([np.asarray(sample, np.float64) for sample in samples], statistic, rng, resamples)
    return Bounds(estimate=float(estimate), low=float(low), high=float(high))


def interquartile_mean(samples: Sequence[Sequence[float]], rng: np.random.Generator, *, resamples: int = RESAMPLES) -> Bounds:
    """The mean of the middle half of all values, with its stratified bootstrap interval.

    It is less sensitive to a single seed than the mean, and more efficient than the median of few values (Agarwal et al., 2021,
    arXiv 2108.13264). For fewer than four values it is their mean.

    Args:
        samples: for each task (a load, a workload), a value for each learner seed.
        rng: what is drawn comes from it.
        resamples: number of draws.
    """
    return bootstrap_interval(samples, _middle_mean, rng, resamples=resamples)


def interquartile_curve(
    curves: NDArray[np.float64], rng: np.random.Generator, *, resamples: int = RESAMPLES
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The same at each point of curves of which there is one for each learner seed; whole curves are resampled.

    Args:
        curves: (seeds, points).
        rng: what is drawn comes from it.
        resamples: number of draws.

    Returns:
        Interquartile mean and the ends of its pointwise interval, each (points,); the ends are NaN with fewer than two seeds.
    """
    return _bootstrap([curves], _middle_mean, rng, resamples)


def _middle_mean(*samples: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    from scipy import stats  # here: the import takes a second, and most commands need none of it

    return stats.trim_mean(np.concatenate(samples, axis=axis), _TRIMMED, axis=axis)


def _bootstrap(
    samples: Sequence[NDArray[np.float64]], statistic: Statistic, rng: np.random.Generator, resamples: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The statistic over the first axis of samples (n, ...) and the ends of its percentile interval, each (...)."""
    estimate = np.asarray(statistic(*samples, axis=0))
    if min(len(sample) for sample in samples) < 2:
        return estimate, np.full_like(estimate, math.nan), np.full_like(estimate, math.nan)
    from scipy import stats  # here, as above

    found: Any = stats.bootstrap(
        samples,
        statistic,
        n_resamples=resamples,
        vectorized=True,
        axis=0,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=rng,
    )
    return estimate, *found.confidence_interval


def _check_pairs(values: Sequence[float], baseline: Sequence[float]) -> None:
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} values against {len(baseline)}: a pair for each seed is needed")
