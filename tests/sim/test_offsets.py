"""What offsets learn from answers: nothing where nothing is wrong, whatever has finished, else what is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from rllib_envs.sim.offsets import (
    LENGTH_SHARED_SD,
    OFFSET,
    note_length,
    note_score,
    start_lengths,
    start_scores,
    with_odds,
)

N = 3
SD = 0.45
NEVER_COUNTED = -np.inf
scores = st.floats(0, 1, width=32)
logits = st.floats(-6, 6)


def lengths() -> NDArray[np.void]:
    offsets = np.zeros(N + 1, OFFSET)
    start_lengths(offsets)
    return offsets


def logit(p: float) -> float:
    return math.log(p / (1 - p))


@given(scores)
def test_even_odds_leave_a_score_as_it_is_to_the_last_bit(score: float) -> None:
    assert with_odds(np.float32(score), np.float32(1)) == np.float32(score)


@given(scores, logits)
def test_odds_keep_scores_between_0_and_1_and_both_ends(score: float, by: float) -> None:
    factor = np.float32(math.exp(by))
    assert 0 <= with_odds(np.float32(score), factor) <= 1
    assert with_odds(np.float32(0), factor) == 0
    assert with_odds(np.float32(1), factor) == 1


@given(st.floats(0.01, 0.99), st.floats(-3, 3))
def test_odds_move_the_logit(score: float, by: float) -> None:
    assert logit(with_odds(score, math.exp(by))) == pytest.approx(logit(score) + by, abs=1e-9)


@given(st.floats(-3, 3), st.floats(-3, 3), st.integers(0, N - 1))
def test_an_answer_that_is_only_known_to_be_longer_moves_offsets_up(now: float, again: float, e: int) -> None:
    offsets = lengths()
    first, second = sorted((now, again))
    note_length(offsets[N], offsets[e], NEVER_COUNTED, first, SD, False)
    one = offsets["mean"].copy()
    note_length(offsets[N], offsets[e], first, second, SD, False)
    assert (offsets["mean"] >= one - 1e-12).all()
    assert (one >= 0).all()
    assert (np.delete(offsets["mean"], [e, N]) == 0).all()


@given(st.floats(-3, 0.4), st.floats(-3, 0.4))
def test_that_it_has_ended_says_less_than_that_it_goes_on(before: float, now: float) -> None:
    ended, going = lengths(), lengths()
    first, second = sorted((before, now))
    note_length(ended[N], ended[0], first, second, SD, True)
    note_length(going[N], going[0], first, second, SD, False)
    assert ended["mean"][N] < going["mean"][N]


@given(st.floats(0.5, 20), st.booleans())
def test_how_long_a_very_long_answer_is_does_not_matter(excess: float, ended: bool) -> None:
    """It may be a loop."""
    one, other = lengths(), lengths()
    note_length(one[N], one[0], NEVER_COUNTED, excess, SD, ended)
    note_length(other[N], other[0], NEVER_COUNTED, 30.0, SD, False)
    np.testing.assert_array_equal(one["mean"], other["mean"])


def cohort(shift: float, until: float, rng: np.random.Generator, count: int = 3000) -> NDArray[np.float64]:
    """Slopes of answers that all began at once and grew until ``until`` (log of tokens over what was expected).

    (count, 2): with the answers under way, and of those that have finished alone.
    """
    slopes = np.zeros((count, 2))
    for slope, end in zip(slopes, shift + SD * rng.standard_normal(count), strict=True):
        fixed = np.zeros(2, OFFSET)  # so little is left to learn that they stay where they are
        fixed["variance"] = fixed["least_variance"] = 1e-9
        before = NEVER_COUNTED
        for look in np.arange(-1.0, min(until, end), 0.25):
            note_length(fixed[0], fixed[1], before, look, SD, False)
            before = look
        if end > until:
            note_length(fixed[0], fixed[1], before, until, SD, False)
        else:
            note_length(fixed[0], fixed[1], before, end, SD, True)
            alone = np.zeros(2, OFFSET)
            alone["variance"] = alone["least_variance"] = 1e-9
            note_length(alone[0], alone[1], NEVER_COUNTED, end, SD, True)
            slope[1] = alone["mean"][0] / 1e-9
        slope[0] = fixed["mean"][0] / 1e-9
    return slopes


@pytest.mark.parametrize("until", [-0.3, 0.0, 2.0])
def test_right_lengths_teach_nothing_on_average_at_any_time(until: float) -> None:
    both, finished = cohort(0.0, until, np.random.default_rng(1)).T
    assert abs(both.mean()) < 4.5 * both.std() / math.sqrt(both.size)
    if until <= 0:  # those that have finished are the short ones
        assert finished.mean() < -4.5 * finished.std() / math.sqrt(finished.size)


@pytest.mark.parametrize("shift", [-0.5, 0.5])
def test_wrong_lengths_are_noticed_before_all_have_finished(shift: float) -> None:
    slopes = cohort(shift, -0.1, np.random.default_rng(2))[:, 0]
    assert np.sign(shift) * slopes.mean() > 4.5 * slopes.std() / math.sqrt(slopes.size)


@pytest.mark.parametrize("shift", [-0.8, 0.6])
def test_an_error_of_all_lengths_is_found_and_most_of_it_is_shared(shift: float) -> None:
    rng, offsets = np.random.default_rng(3), lengths()
    for k in range(300):
        e = k % (N - 1)  # nothing is sent to the last expert
        note_length(offsets[N], offsets[e], NEVER_COUNTED, shift + SD * rng.standard_normal(), SD, True)
    total = offsets["mean"][:N] + offsets["mean"][N]
    assert total[: N - 1] == pytest.approx(shift, abs=0.15)
    assert abs(total[N - 1] - shift) < abs(shift) / 2
    assert (offsets["variance"] > 0).all()
    assert offsets["variance"][N] < LENGTH_SHARED_SD**2


@pytest.mark.parametrize("shift", [-0.8, 0.8])
def test_a_change_of_all_lengths_is_found_as_soon_as_a_fault_from_the_beginning(shift: float) -> None:
    rng, offsets = np.random.default_rng(5), lengths()
    for k in range(460):
        wrong = shift if k >= 400 else 0.0
        note_length(offsets[N], offsets[k % N], NEVER_COUNTED, wrong + SD * rng.standard_normal(), SD, True)
    assert offsets["mean"][:N] + offsets["mean"][N] == pytest.approx(shift, abs=0.2)


def test_chance_alone_seldom_is_a_surprise() -> None:
    rng, offsets, surprises = np.random.default_rng(6), lengths(), 0
    for k in range(4000):
        before = offsets["variance"][N]
        note_length(offsets[N], offsets[k % N], NEVER_COUNTED, SD * rng.standard_normal(), SD, True)
        surprises += offsets["variance"][N] > before
    assert surprises < 40


@pytest.mark.parametrize("shift", [-1.5, 0.0, 1.5])
def test_an_error_of_all_scores_is_found(shift: float) -> None:
    rng, offsets = np.random.default_rng(4), np.zeros(N + 1, OFFSET)
    start_scores(offsets)
    for k in range(400):
        p = rng.uniform(0.2, 0.8)
        right = rng.random() < with_odds(p, math.exp(shift))
        note_score(offsets[N], offsets[k % N], np.float32(p), np.float32(right))
    assert offsets["mean"][:N] + offsets["mean"][N] == pytest.approx(shift, abs=0.45)


@given(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))
def test_scores_that_are_all_alike_keep_the_offsets_finite(score: float, predicted: float) -> None:
    offsets = np.zeros(N + 1, OFFSET)
    start_scores(offsets)
    for _ in range(500):
        note_score(offsets[N], offsets[0], np.float32(predicted), np.float32(score))
    assert np.isfinite(offsets["mean"]).all()
    assert np.abs(offsets["mean"]).max() < 20
