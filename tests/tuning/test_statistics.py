"""Intervals against SciPy and against what they promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tuning.statistics import CONFIDENCE, mean_interval, paired_difference, relative_difference

samples = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=30)


@given(samples)
def test_interval_is_students(values):
    interval = mean_interval(values)
    error = stats.sem(values)
    half_width = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * error
    assert interval.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert interval.half_width == pytest.approx(half_width, rel=1e-9, abs=1e-9)
    assert interval.high - interval.low == pytest.approx(2 * interval.half_width, abs=1e-9)


def test_intervals_cover_the_true_mean_as_often_as_promised():
    rng = np.random.default_rng(1)
    repeats = 2000
    intervals = [mean_interval(rng.normal(0.6, 0.02, size=6).tolist()) for _ in range(repeats)]
    covered = sum(interval.low <= 0.6 <= interval.high for interval in intervals)
    assert stats.binomtest(covered, repeats, CONFIDENCE).pvalue > 1e-3


def test_a_paired_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(2)
    episode = rng.normal(size=12)
    a, b = episode + rng.normal(0.1, 0.05, 12), episode + rng.normal(0, 0.05, 12)
    expected = stats.ttest_rel(a, b).confidence_interval(CONFIDENCE)
    difference = paired_difference(a.tolist(), b.tolist())
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))


def test_pairing_removes_what_the_episodes_have_in_common():
    rng = np.random.default_rng(3)
    episode = rng.normal(size=20)
    a, b = episode + 0.01 * rng.normal(size=20), episode + 0.01 * rng.normal(size=20)
    assert paired_difference(a.tolist(), b.tolist()).half_width < 0.05 * mean_interval(a.tolist()).half_width


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=20))
def test_differences_are_antisymmetric(pairs):
    a, b = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    there, back = paired_difference(a, b), paired_difference(b, a)
    assert there.mean == -back.mean
    assert there.half_width == back.half_width


@given(samples)
def test_the_difference_to_itself_is_exactly_zero(values):
    difference = paired_difference(values, values)
    assert (difference.mean, difference.half_width) == (0, 0)
    assert not difference.excludes_zero


def test_one_value_has_no_interval():
    interval = mean_interval([0.5])
    assert interval.mean == 0.5
    assert math.isnan(interval.half_width)
    assert not interval.excludes_zero


def test_unknown_values_are_left_out():
    assert mean_interval([1.0, math.nan, 3.0]) == mean_interval([1.0, 3.0])
    assert math.isnan(mean_interval([math.nan]).mean)


def test_a_pair_is_needed_for_each_seed():
    with pytest.raises(ValueError, match="3 values against 2"):
        paired_difference([1, 2, 3], [1, 2])


def test_a_relative_difference_is_that_of_the_means_in_any_unit():
    rng = np.random.default_rng(4)
    a, b = rng.uniform(0.5, 0.9, 9), rng.uniform(0.3, 0.6, 9)
    found, scaled = relative_difference(a.tolist(), b.tolist()), relative_difference((7 * a).tolist(), (7 * b).tolist())
    assert found.mean == pytest.approx(a.mean() / b.mean() - 1)
    assert (scaled.mean, scaled.half_width) == pytest.approx((found.mean, found.half_width))
    constant = np.full(9, 0.5)
    assert relative_difference(a.tolist(), constant.tolist()).half_width == pytest.approx(
        mean_interval(a.tolist()).half_width / 0.5
    )
    proportional = relative_difference((1.2 * b).tolist(), b.tolist())
    assert (proportional.mean, proportional.half_width) == pytest.approx((0.2, 0), abs=1e-12)


def test_relative_intervals_cover_the_true_ratio_as_often_as_promised():
    rng = np.random.default_rng(5)
    repeats = 2000
    covered = 0
    for _ in range(repeats):
        episode = rng.normal(0, 0.05, 10)
        interval = relative_difference(
            (0.66 + 1.1 * episode + rng.normal(0, 0.01, 10)).tolist(), (0.6 + episode + rng.normal(0, 0.01, 10)).tolist()
        )
        covered += interval.low <= 0.1 <= interval.high
    assert stats.binomtest(covered, repeats, CONFIDENCE).pvalue > 1e-3


def test_nothing_is_relative_to_nothing():
    assert math.isnan(relative_difference([1.0, 2.0], [0.0, 0.0]).mean)
    with pytest.raises(ValueError, match="3 values against 2"):
        relative_difference([1, 2, 3], [1, 2])
