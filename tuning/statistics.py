"""Means over seeds with their uncertainty, and differences between routers on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

CONFIDENCE = 0.95


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
    """Interval of the mean of ``values - baseline``, seed by seed: what both owe to the episode cancels.

    Raises:
        ValueError: different numbers of seeds.
    """
    _check_pairs(values, baseline)
    return mean_interval((np.asarray(values, np.float64) - np.asarray(baseline, np.float64)).tolist())


def relative_difference(values: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Interval of ``mean(values) / mean(baseline) - 1``, seed by seed; NaN where the baseline's mean is 0.

    The half width is that of the linearised ratio: with R the ratio of the means, of the mean of ``values - R * baseline`` over
    the baseline's mean (Cochran, Sampling Techniques, 3rd ed., 1977, chapter 6).

    Raises:
        ValueError: different numbers of seeds.
    """
    _check_pairs(values, baseline)
    own, other = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    if other.mean() == 0:
        return Interval(mean=math.nan, half_width=math.nan)
    ratio = own.mean() / other.mean()
    return Interval(mean=float(ratio) - 1, half_width=mean_interval(((own - ratio * other) / other.mean()).tolist()).half_width)


def _check_pairs(values: Sequence[float], baseline: Sequence[float]) -> None:
    if len(values) != len(baseline):
        raise ValueError(f"{len(values)} values against {len(baseline)}: a pair for each seed is needed")
