"""Lambda-returns of afterstates against the sums that they stand for."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.rllib.learning.returns import afterstate_returns
from tests.draws import examples

BETA = 0.3


def draw(seed, steps, batch=3, cuts=0.25):
    """Random rewards, values, gaps and episodes."""
    rng = np.random.default_rng(seed)
    return {
        "reward": rng.normal(size=(steps + 1, batch)).astype(np.float32),
        "value": rng.normal(size=(steps + 1, batch)).astype(np.float32),
        "dt_s": rng.exponential(size=(steps, batch)).astype(np.float32),
        "continues": rng.random((steps, batch)) >= cuts,
    }


def n_step(data, t, b, n):
    """``r`` of the n decisions after t, then the value of the last of them; each discounted by the time until then."""
    elapsed = np.cumsum(data["dt_s"][t : t + n, b].astype(float))
    discounts = np.exp(-BETA * elapsed)
    return discounts @ data["reward"][t + 1 : t + 1 + n, b] + discounts[-1] * data["value"][t + n, b]


def by_the_sum(data, lam):
    """The lambda-return as the weighted mean of the n-step returns within what is left of the episode."""
    steps, batch = data["dt_s"].shape
    expected = np.empty((steps, batch))
    for t in range(steps):
        for b in range(batch):
            ends = np.flatnonzero(~data["continues"][t:, b])
            longest = int(ends[0]) if len(ends) else steps - t
            if not longest:
                expected[t, b] = data["value"][t, b]
                continue
            weights = [(1 - lam) * lam ** (n - 1) for n in range(1, longest)] + [lam ** (longest - 1)]
            expected[t, b] = sum(weight * n_step(data, t, b, n) for n, weight in enumerate(weights, 1))
    return expected


@examples(80)
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(1, 9), lam=st.sampled_from([0.0, 0.3, 0.9, 1.0]))
def test_they_are_the_weighted_mean_of_all_horizons(seed, steps, lam):
    data = draw(seed, steps)
    got = afterstate_returns(**data, beta_per_s=BETA, lam=lam)
    np.testing.assert_allclose(got, by_the_sum(data, lam), rtol=1e-6, atol=1e-6)


@examples(30)
@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 7))
def test_nothing_flows_across_the_end_of_an_episode(seed, cut):
    data = draw(seed, 8)
    data["continues"][cut] = False
    changed = {key: x.copy() for key, x in data.items()}
    changed["reward"][cut + 1 :] += 5
    changed["value"][cut + 1 :] -= 5
    changed["dt_s"][cut:] *= 3
    before, after = (afterstate_returns(**x, beta_per_s=BETA, lam=0.9) for x in (data, changed))
    assert np.array_equal(before[: cut + 1], after[: cut + 1])
    assert np.array_equal(before[cut], data["value"][cut])


@examples(30)
@given(seed=st.integers(0, 2**32 - 1), lam=st.floats(0, 1))
def test_values_that_tell_the_future_are_their_own_returns(seed, lam):
    """Where ``V_t`` already is the discounted sum of what follows, no horizon makes a difference."""
    data = draw(seed, 12, cuts=0.0)
    value = data["value"].astype(float)
    for t in reversed(range(12)):
        value[t] = np.exp(-BETA * data["dt_s"][t].astype(float)) * (data["reward"][t + 1] + value[t + 1])
    got = afterstate_returns(**data | {"value": value}, beta_per_s=BETA, lam=lam)
    np.testing.assert_allclose(got, value[:-1], rtol=1e-9, atol=1e-9)


@examples(30)
@given(seed=st.integers(0, 2**32 - 1), lam=st.floats(0, 1))
def test_what_a_return_adds_to_the_value_telescopes(seed, lam):
    """``G_t - V_t`` is the sum of the one-step surprises to come, each discounted by time and by lambda."""
    data = draw(seed, 8, batch=1, cuts=0.0)
    discount = np.exp(-BETA * data["dt_s"].astype(float))
    surprise = discount * (data["reward"][1:] + data["value"][1:]) - data["value"][:-1]
    weights = [np.prod(lam * discount[:t]) for t in range(8)]
    got = afterstate_returns(**data, beta_per_s=BETA, lam=lam)[0] - data["value"][0]
    np.testing.assert_allclose(got[0], np.dot(weights, surprise[:, 0]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_what_counts_is_the_time_that_passes_and_not_how_often_somebody_looks(lam):
    """A decision that earns nothing, put in halfway, changes nothing where its value is that of the time that is left."""
    data = draw(3, 6, cuts=0.0)
    value = np.zeros((7, 3))
    for t in reversed(range(6)):
        value[t] = np.exp(-BETA * data["dt_s"][t]) * (data["reward"][t + 1] + value[t + 1])
    halves = np.repeat(data["dt_s"].astype(float) / 2, 2, axis=0)
    reward, finer = np.zeros((13, 3)), np.zeros((13, 3))
    reward[::2], finer[::2] = data["reward"], value
    finer[1::2] = np.exp(BETA * halves[::2]) * value[:-1]
    got = afterstate_returns(reward, finer, halves, np.ones((12, 3), bool), beta_per_s=BETA, lam=lam)
    np.testing.assert_allclose(got[::2], value[:-1], rtol=1e-6)


def test_the_longer_the_gap_the_less_the_future_counts():
    data = draw(4, 5, cuts=0.0)
    data["reward"], data["value"] = abs(data["reward"]), abs(data["value"])
    sums = [afterstate_returns(**data, beta_per_s=beta, lam=0.9) for beta in (0.0, 0.1, 1.0)]
    assert all((less < more).all() for more, less in pairwise(sums))
