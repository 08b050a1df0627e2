"""Arrivals to come, given those so far."""

from __future__ import annotations

import numpy as np
import pytest

from rllib_envs.errors import InputError
from rllib_envs.scenario import Arrivals, with_workload
from rllib_envs.workload.arrivals import arrival_times
from tests.worlds import small
from tuning.headroom.arrivals import FutureArrivals, Mmpp

BURSTY = {"burst_ratio": 6.0, "burst_share": 0.25, "cycle_s": 40.0}


def observed(n, **changes):
    return arrival_times(Arrivals(kind="mmpp", **BURSTY | changes), 2.0, n, np.random.default_rng(1))


def beliefs(process, times):
    return np.array([process.in_burst(times[: i + 1]) for i in range(times.size)])


def test_the_probability_of_a_burst_comes_true_and_tells_of_the_next_gap():
    times = observed(2500)
    burst = beliefs(Mmpp(2.0, *BURSTY.values()), times)
    ratio, share = BURSTY["burst_ratio"], BURSTY["burst_share"]
    assert burst.mean() == pytest.approx(share * ratio / (1 - share + share * ratio), abs=0.07)  # of the arrivals
    gaps = np.diff(times)
    sure, unlikely = gaps[burst[:-1] > 0.9], gaps[burst[:-1] < 0.2]
    assert min(sure.size, unlikely.size) > 100
    assert unlikely.mean() > 2 * sure.mean()


def test_nothing_is_learned_where_both_rates_are_equal():
    times = observed(50, burst_ratio=1.0)
    np.testing.assert_allclose(beliefs(Mmpp(2.0, 1.0, 0.25, 40.0), times), 0.25, rtol=1e-9)


def test_a_filter_may_start_anew_at_any_arrivals():
    times, going_on = observed(40), Mmpp(2.0, *BURSTY.values())
    for count in (10, 11, 30, 30, 5):
        assert going_on.in_burst(times[:count]) == pytest.approx(Mmpp(2.0, *BURSTY.values()).in_burst(times[:count]), rel=1e-12)


def test_gaps_begin_with_the_present_rate_and_reach_the_mean_rate():
    process = Mmpp(2.0, *BURSTY.values())
    rng = np.random.default_rng(2)
    for in_burst, rate_rps in ((0.0, process.rates[0]), (1.0, process.rates[1])):
        gaps = process.gaps_s(in_burst, (4000, 1), rng)
        assert gaps.mean() == pytest.approx(1 / rate_rps, rel=0.15)
    late = process.gaps_s(0.0, (100, 1500), rng)[:, 300:]
    assert late.mean() == pytest.approx(0.5, rel=0.06)


def test_independent_gaps_are_drawn_from_the_process():
    world = with_workload(small("edge6"), arrivals=Arrivals(kind="gamma", cv=3.0), load=2.0)
    sampled = arrival_times(world.workload.arrivals, 2.0, 4000, np.random.default_rng(3))
    gaps = FutureArrivals(world, sampled).gaps_s(np.zeros(1), (50, 80), np.random.default_rng(4))
    assert gaps.shape == (50, 80)
    assert np.isin(gaps, np.diff(sampled)).all()
    assert gaps.mean() == pytest.approx(np.diff(sampled).mean(), rel=0.2)


@pytest.mark.parametrize("changes", [{"arrivals": Arrivals(kind="diurnal"), "load": 2.0}, {"load": "heavy"}])
def test_a_future_that_is_not_known_is_refused(changes):
    with pytest.raises(InputError, match=r"diurnal.*poisson, gamma, mmpp|heavy.*requests per second"):
        FutureArrivals(with_workload(small("edge6"), **changes), np.arange(3.0))
