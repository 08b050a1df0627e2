"""Offsets of what is predicted: one that all experts share and one of each expert, learned from answers one by one.

The truth is the prediction, plus both offsets, plus an error. Each offset has a mean and a variance, which say what is known of
it. Evidence moves both, as in a Kalman filter that keeps no covariance between them::

    scale     = 1 / (1 + information * (shared.variance + own.variance))
    mean     += variance * slope * scale                           slope: of the log likelihood along the sum of the offsets
    variance -= variance^2 * information * scale                   information: the variance of that slope

The variance stays above a floor, since truths drift. So the first answers move an offset most. Most of what they say goes to the
shared one, which corrects experts too to which nothing was sent.

Truths change at once, too, where prompts of another kind begin. Then slopes have one sign. So a sum of the slopes is kept, and
the variance that it has where nothing has changed; both forget. Where the sum is beyond ``MOST_SURPRISE`` of its standard
deviations, the shared offset is learned as from the beginning (a test on the filter's innovations, Mehra and Peschon 1971).

Lengths. The log length is normal about its expected value, with the standard deviation that the predictor states. An answer is
counted while it grows: that it has become longer than when it was counted before, and in the end that it stops. Short answers are
over first, so those that have finished say too little as long as longer ones are under way. With the answers under way the slope
is 0 on average at any time where nothing is wrong. An answer that was cut off is one of which no more is known (a censored value,
Tobin 1958). So is one of which it is known to be longer than ``MOST_SD`` allows: it may be a loop, whose length says nothing.

Scores. The offset is one of the logit, and an answer is right with the predicted probability. A score between 0 and 1 counts as
the mean of many such answers.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.jit import kernel

OFFSET = np.dtype(
    [
        ("mean", "f8"), ("variance", "f8"),  # what is known of it
        ("least_variance", "f8"), ("first_variance", "f8"),  # floor of the variance, and its value before the first outcome
        ("surprise", "f8"), ("surprise_variance", "f8"),  # of the shared one alone: sum of slopes, and its variance
    ],
    align=True,
)  # fmt: skip

LENGTH_SHARED_SD, LENGTH_OWN_SD, LENGTH_SHARED_LEAST_SD, LENGTH_OWN_LEAST_SD = 0.2, 0.05, 0.05, 0.02
"""Standard deviations of the offsets of log lengths: before the first answer, and the least.

A router that is told the same length for every request reacts to the least difference between experts, so little is left to
their own offsets. [ADR 13](docs/adr/0013-offsets-of-predictions.md) has what other values did.
"""

SCORE_SHARED_SD, SCORE_OWN_SD, SCORE_SHARED_LEAST_SD, SCORE_OWN_LEAST_SD = 1.0, 0.1, 0.1, 0.03
"""The same for logits of scores. Differences of scores between experts are small, and decide where a request goes."""

MOST_SD = 1.0
"""By how many standard deviations an answer is longer than expected is of interest up to here."""

MOST_SURPRISE, SURPRISE_MEMORY = 3.0, 0.95
"""How many standard deviations are no chance, and the share of the sum that is kept at each outcome."""

_LEAST_LOG_SD = 0.1  # of a log length, whatever the predictor states

_CERTAIN = np.float32(1e-3)  # a predicted score is learned from as if it were at least so far from 0 and 1
_ONE = np.float32(1)
_LONG_BEFORE = -4.0  # standard deviations from the expected log length: nearly all answers are longer than that


def start_lengths(offsets: NDArray[np.void]) -> None:
    """Reset the offsets (N+1,) of log lengths to what is known before the first outcome; the last one is the shared one."""
    _start(offsets[:-1], LENGTH_OWN_SD, LENGTH_OWN_LEAST_SD)
    _start(offsets[-1:], LENGTH_SHARED_SD, LENGTH_SHARED_LEAST_SD)


def start_scores(offsets: NDArray[np.void]) -> None:
    """The same for logits of scores."""
    _start(offsets[:-1], SCORE_OWN_SD, SCORE_OWN_LEAST_SD)
    _start(offsets[-1:], SCORE_SHARED_SD, SCORE_SHARED_LEAST_SD)


def _start(offsets: NDArray[np.void], sd: float, least_sd: float) -> None:
    offsets[:] = np.zeros((), OFFSET)
    offsets["variance"], offsets["least_variance"], offsets["first_variance"] = sd**2, least_sd**2, sd**2


@kernel
def _learn(offset, slope, information, scale):
    offset.mean += offset.variance * slope * scale
    offset.variance = max(offset.variance * (1.0 - offset.variance * information * scale), offset.least_variance)


@kernel
def _note_surprise(shared, slope, information):
    """Count a slope in the sum, whose variance is that of the error and of what is not known of the offset."""
    shared.surprise = SURPRISE_MEMORY * shared.surprise + slope
    shared.surprise_variance *= SURPRISE_MEMORY * SURPRISE_MEMORY
    shared.surprise_variance += information * (1.0 + information * shared.variance)
    if shared.surprise * shared.surprise > MOST_SURPRISE * MOST_SURPRISE * shared.surprise_variance:
        shared.variance = max(shared.variance, shared.first_variance)
        shared.surprise = shared.surprise_variance = 0.0


@kernel
def _learn_both(shared, own, slope, information):
    """Move both OFFSET records by an outcome."""
    _note_surprise(shared, slope, information)
    scale = 1.0 / (1.0 + information * (shared.variance + own.variance))
    _learn(shared, slope, information, scale)
    _learn(own, slope, information, scale)


@kernel
def _known_longer(z):
    """Slope of the log likelihood, and information, where a standard normal variable is only known to be above ``z``."""
    if z < _LONG_BEFORE:
        return 0.0, 0.0
    mean = math.exp(-0.5 * z * z) / (math.sqrt(0.5 * math.pi) * math.erfc(z * math.sqrt(0.5)))
    return mean, mean * (mean - z)


@kernel
def note_length(shared, own, before, now, log_sd, ended):
    """Count in the OFFSET records of log lengths that an answer has grown.

    Args:
        shared: what all experts have in common.
        own: of the expert that answers.
        before: log of its tokens when it was counted last, less the expected log length; -inf: for the first time.
        now: the same of its tokens now.
        log_sd: standard deviation of log lengths where nothing is wrong.
        ended: whether it has ended there by itself. If it goes on, or was cut off, it is only known to be longer.
    """
    sd, offset = max(log_sd, _LEAST_LOG_SD), shared.mean + own.mean
    z = min((now - offset) / sd, MOST_SD)
    slope_before, information_before = _known_longer(min((before - offset) / sd, MOST_SD))
    if ended and z < MOST_SD:
        slope, information = z, 1.0
    else:
        slope, information = _known_longer(z)
    _learn_both(shared, own, (slope - slope_before) / sd, max(information - information_before, 0.0) / (sd * sd))


@kernel
def note_score(shared, own, predicted_score, score):
    """Count a judged answer in the OFFSET records of logits: predicted and actual score, from 0 to 1."""
    predicted = min(max(predicted_score, _CERTAIN), _ONE - _CERTAIN)
    expected = with_odds(predicted, math.exp(shared.mean + own.mean))
    _learn_both(shared, own, score - expected, expected * (1.0 - expected))


@kernel
def with_odds(score, factor):
    """The score with its odds times ``factor``: its logit moved by log(factor).

    Exactly the same score for a factor of 1, and for a score of 0 or 1.
    """
    moved = score * factor
    return moved / (_ONE - score + moved)
