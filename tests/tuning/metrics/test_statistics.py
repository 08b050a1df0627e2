"""Intervals against SciPy and against what they promise."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rllib_envs.scenario import with_workload
from rllib_envs.scenarios.load import load_scenario
from tuning.evaluation.matrix import Cell, run_cell
from tuning.metrics.statistics import (
    CONFIDENCE,
    bootstrap_interval,
    family_interval,
    interquartile_curve,
    interquartile_mean,
    mean_interval,
    paired_difference,
    relative_difference,
)
from tuning.specs.routers import parse_router

pytestmark = pytest.mark.slow

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


def mean_of_all(*samples, axis):
    return np.concatenate(samples, axis=axis).mean(axis=axis)


@given(st.lists(st.integers(-100, 100), min_size=2, max_size=12))
def test_a_bootstrap_interval_lies_within_the_sample_around_the_estimate(values):
    found = bootstrap_interval([values], mean_of_all, np.random.default_rng(0), resamples=200)
    assert found.estimate == pytest.approx(np.mean(values))
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


def test_a_bootstrap_interval_is_students_for_many_values():
    values = np.random.default_rng(6).normal(0.6, 0.1, 400).tolist()
    found, expected = bootstrap_interval([values], mean_of_all, np.random.default_rng(0)), mean_interval(values)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.15 * expected.half_width)


def test_a_bootstrap_draws_from_the_generator_alone():
    values = np.random.default_rng(7).normal(size=9).tolist()
    first, again, other = (bootstrap_interval([values], mean_of_all, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_each_sample_is_drawn_from_within_itself():
    """Tasks may differ as much as they like: what differs between them is no uncertainty."""
    one, other = [0.1, 0.1, 0.1], [0.9, 0.9, 0.9]
    found = bootstrap_interval([one, other], mean_of_all, np.random.default_rng(0))
    assert (found.estimate, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert bootstrap_interval([one + other], mean_of_all, np.random.default_rng(0)).low < 0.4


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=15), st.randoms(use_true_random=False))
def test_an_interquartile_mean_is_that_of_the_middle_half_in_any_order(values, random):
    shuffled = random.sample(values, len(values))
    a, b = (interquartile_mean([x], np.random.default_rng(0), resamples=10).estimate for x in (values, shuffled))
    cut = len(values) // 4
    assert a == pytest.approx(np.mean(sorted(values)[cut : len(values) - cut]), abs=1e-9)
    assert a == pytest.approx(b, abs=1e-9)


def test_an_interquartile_mean_is_not_moved_by_how_bad_a_bad_seed_is():
    good = [0.68, 0.69, 0.7, 0.71, 0.72]
    a, b = (interquartile_mean([[*good, bad]], np.random.default_rng(0), resamples=10).estimate for bad in (0.5, -100))
    assert a == b


def test_one_seed_has_no_interval_over_seeds():
    found = interquartile_mean([[0.5]], np.random.default_rng(0))
    assert found.estimate == 0.5
    assert math.isnan(found.low)
    assert math.isnan(found.high)


def test_a_curve_has_at_each_point_the_interquartile_mean_there():
    curves = np.random.default_rng(8).normal(size=(6, 4))
    middle, low, high = interquartile_curve(curves, np.random.default_rng(0))
    for point, values in enumerate(curves.T.tolist()):
        found = interquartile_mean([values], np.random.default_rng(0))
        assert (middle[point], low[point], high[point]) == pytest.approx((found.estimate, found.low, found.high))


def test_intervals_of_a_family_hold_together_as_often_as_promised():
    rng = np.random.default_rng(9)
    repeats, family = 1000, 10
    together = 0
    for _ in range(repeats):
        intervals = [family_interval(mean_interval(x.tolist()), 6, family) for x in rng.normal(size=(family, 6))]
        together += all(interval.low <= 0 <= interval.high for interval in intervals)
    assert stats.binomtest(together, repeats, CONFIDENCE, alternative="less").pvalue > 1e-3
    alone = mean_interval([1.0, 2.0, 4.0])
    assert family_interval(alone, 3, 1).half_width == pytest.approx(alone.half_width)


@pytest.fixture(scope="module")
def episodes():
    """QoS of one router in many episodes, which are those of as many seeds."""
    scenario = with_workload(load_scenario("edge2"), requests=100, load="moderate")
    return np.array(
        run_cell(Cell(router=parse_router("power-of-two"), scenario=scenario, seeds=tuple(range(1500)))).metrics["qos"]
    )


@pytest.mark.parametrize("seeds", [5, 20])
def test_a_router_does_not_differ_from_itself_on_other_seeds(episodes, seeds):
    """As evaluations compare: at most one interval in twenty says that it does."""
    rng = np.random.default_rng(10)
    repeats = 2000
    clear = 0
    for _ in range(repeats):
        a, b = rng.choice(episodes, (2, seeds), replace=False)
        clear += paired_difference(a.tolist(), b.tolist()).excludes_zero
    assert stats.binomtest(clear, repeats, 1 - CONFIDENCE, alternative="greater").pvalue > 1e-3


def test_a_router_that_is_a_little_better_is_found_to_be(episodes):
    """The test above would pass if every interval were endless."""
    rng = np.random.default_rng(11)
    clear = 0
    for _ in range(200):
        a, b = rng.choice(episodes, (2, 20), replace=False)
        clear += paired_difference((a + 2 * episodes.std()).tolist(), b.tolist()).excludes_zero
    assert clear > 190


def test_a_bootstrap_interval_of_a_router_against_itself_holds_zero(episodes):
    """Percentile intervals of few seeds are a little too narrow; of forty, hardly."""
    rng = np.random.default_rng(12)
    repeats = 400
    held = 0
    for _ in range(repeats):
        a, b = rng.choice(episodes, (2, 40), replace=False)
        found = bootstrap_interval([(a - b).tolist()], mean_of_all, rng, resamples=500)
        held += found.low <= 0 <= found.high
    assert stats.binomtest(held, repeats, CONFIDENCE - 0.01, alternative="less").pvalue > 1e-3
