"""Online calibration: the router learns the errors of its figures while it works.

Predicted lengths and scores. ``rllib_envs.sim.offsets`` has what is learned: an offset of the log length and one of the logit of
the score, each as one part that all experts share and one of the expert. Lengths are learned from the answers of the expert that
each request was sent to. Scores are learned from the finished answers that somebody judges (``observation.judged_share``).
Predicted lengths are means as a rule, and most answers are shorter than the mean. So lengths are compared with the median that
goes with the prediction (``log_median``), else right predictions would be shortened.

Engine figures. ``steps`` has for each expert a moving average of log(observed / nominal iteration time), with at most one sample
per observation. It is of the last complete iteration of the current plan, if that iteration only decodes. Prefill cost cannot be
separated from the rest of its batch there; it is scaled alike. Who sees the tokens tells it apart (``rllib_envs.sim.seen``) and
learns it in ``prefills``. The k-th sample moves the average by ``max(1 / (prior + k), floor)`` of its distance. So the average
starts at 0 and is the posterior mean of a fault with prior mean 0, ``sum of samples / (prior + k)``.
From ``1 / floor`` samples on it is an exponential moving average, since faults may drift.

The exponentials correct predicted lengths, the odds of predicted scores, and the time coefficients of the engine. Only what
telemetry shows at ``view_s`` counts. A live gateway keeps the same records with the same functions: ``note_length`` while an
answer grows and when it ends, ``note_score`` when it has been judged, ``note_step`` for an iteration, then ``calibrate``.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.jit import kernel, kernel_inlined
from rllib_envs.sim.offsets import OFFSET, note_length, note_score, start_lengths, start_scores
from rllib_envs.sim.plan import steps_begun
from rllib_envs.sim.profile import EngineProfile
from rllib_envs.sim.state import ENGINE, FINISHED, ROUTED, engine_records
from rllib_envs.sim.whatif import telemetry_of

STEP_PRIOR, STEP_FLOOR = 1.0, 0.1
"""Iteration times are frequent and free of noise. Their error comes from applying one batch's times to another batch.

Impact-greedy on edge6 at moderate load, change of mean QoS (8 episodes of 1000 requests): engines slower by 1.25 +.022,
coefficients off by 1.4 either way +.009; with 3 and .05 instead +.021 and +.008, with 1 and .2 +.023 and +.010. If the figures
are right, the samples are exactly 0, so fast updates lose nothing. Measured times of real engines do scatter; a floor of .1
averages over some 20 of them.
"""

_ALL = -1  # in ``counted``: the answer is over
_GROWTH = 1.25  # an answer under way is counted again when it is so many times as long

AVERAGE = np.dtype([("log", "f8"), ("samples", "i8")], align=True)
ERRORS = np.dtype([("square", "f8"), ("samples", "i8")], align=True)

_ERROR_GAIN = 0.01  # of the average error, from the hundredth sample on; before, it is the mean


class Calibration(NamedTuple):
    """The learned corrections for the N experts of B clusters, and their reference figures.

    The last of N + 1 offsets is the one that all experts share.
    """

    lengths: NDArray[np.void]  # (B, N+1) OFFSET of log(actual / predicted tokens)
    scores: NDArray[np.void]  # (B, N+1) OFFSET of the logit of the score
    steps: NDArray[np.void]  # (B, N) AVERAGE of log(observed / nominal iteration time)
    prefills: NDArray[np.void]  # (B, N) AVERAGE of the same of prefill; without samples: not known apart
    errors: NDArray[np.void]  # (B, N) ERRORS: average of the square of log(actual / predicted tokens) of finished answers
    configured: NDArray[np.void]  # (B, N) ENGINE, the figures given to the router
    log_median: NDArray[np.float64]  # (B, N) median of log(actual / predicted tokens) where nothing is wrong
    log_sd: NDArray[np.float64]  # (B, N) its standard deviation, without outliers
    grown: NDArray[np.int32]  # (B, M) tokens of each answer when telemetry last showed it under way
    counted: NDArray[np.int32]  # (B, M) tokens of each answer when it was counted last; -1: it is over
    first: NDArray[np.int32]  # (B,) every request before this one has been counted, or never will be
    seen_s: NDArray[np.float64]  # (B, N) telemetry of each expert up to this time has been used


def allocate_calibration(batch: int, max_requests: int, n_experts: int) -> Calibration:
    """Allocate the records of B clusters with M requests at most."""
    return Calibration(
        lengths=np.zeros((batch, n_experts + 1), OFFSET),
        scores=np.zeros((batch, n_experts + 1), OFFSET),
        steps=np.zeros((batch, n_experts), AVERAGE),
        prefills=np.zeros((batch, n_experts), AVERAGE),
        errors=np.zeros((batch, n_experts), ERRORS),
        configured=np.zeros((batch, n_experts), ENGINE),
        log_median=np.zeros((batch, n_experts)),
        log_sd=np.zeros((batch, n_experts)),
        grown=np.zeros((batch, max_requests), np.int32),
        counted=np.zeros((batch, max_requests), np.int32),
        first=np.zeros(batch, np.int32),
        seen_s=np.zeros((batch, n_experts)),
    )


def reset_calibration(
    calibration: Calibration,
    cluster: int,
    configured: Sequence[EngineProfile],
    log_median: NDArray[np.float64],
    log_sd: NDArray[np.float64],
) -> None:
    """Reset one cluster.

    Args:
        calibration: of all clusters.
        cluster: number of the cluster.
        configured: (N,) the figures given to the router.
        log_median: (N,) median of log(actual / predicted tokens) where nothing is wrong: below 0 for predicted means.
        log_sd: (N,) its standard deviation, without outliers.
    """
    start_lengths(calibration.lengths[cluster])
    start_scores(calibration.scores[cluster])
    calibration.steps[cluster] = np.zeros((), AVERAGE)
    calibration.prefills[cluster] = np.zeros((), AVERAGE)
    calibration.errors[cluster] = np.zeros((), ERRORS)
    calibration.configured[cluster] = engine_records(configured)
    calibration.log_median[cluster], calibration.log_sd[cluster] = log_median, log_sd
    calibration.grown[cluster] = 0
    calibration.counted[cluster] = 0
    calibration.first[cluster] = 0
    calibration.seen_s[cluster] = 0.0


@kernel
def note_step(average, observed_s, predicted_s):
    """Count an iteration in an AVERAGE record: observed and nominal time."""
    average.samples += 1
    gain = max(1.0 / (STEP_PRIOR + average.samples), STEP_FLOOR)
    average.log += gain * (math.log(observed_s / predicted_s) - average.log)


@kernel
def note_error(errors, output_tokens, predicted_tokens):
    """Count a finished answer in an ERRORS record: actual and predicted tokens."""
    errors.samples += 1
    error = math.log(output_tokens / predicted_tokens)
    errors.square += max(_ERROR_GAIN, 1.0 / errors.samples) * (error * error - errors.square)


@kernel
def learnt(offsets, b, e):
    """The offset of expert e of cluster b, the shared part included; ``offsets`` (B, N+1)."""
    return offsets[b, offsets.shape[1] - 1].mean + offsets[b, e].mean


@kernel
def prefill_log(prefill, step):
    """Learned log of actual over nominal prefill time, from two AVERAGE records; that of whole iterations if it is not known."""
    return step.log if prefill.samples == 0 else prefill.log


@kernel
def calibrate(length_log, score_logit, step_log, chunk_log, configured, nominal):
    """Write into ``nominal`` the engine ``configured`` (ENGINE records) as corrected by what was learned.

    Args:
        length_log: offset of the log length.
        score_logit: offset of the logit of the score.
        step_log: average log of observed over nominal iteration time.
        chunk_log: the same of what prefill adds to an iteration.
        configured: as given to the router.
        nominal: as the router uses it.
    """
    slower, slower_prefill = math.exp(step_log), math.exp(chunk_log)
    nominal.c0_s = configured.c0_s * slower
    nominal.b_s = configured.b_s * slower
    nominal.c_s = configured.c_s * slower
    nominal.a_s = configured.a_s * slower_prefill
    nominal.q_s = configured.q_s * slower_prefill
    nominal.c_mixed_s = configured.c_mixed_s * slower_prefill
    nominal.c0_mixed_s = configured.c0_mixed_s * slower_prefill
    nominal.length_factor = configured.length_factor * math.exp(length_log)
    nominal.score_odds = configured.score_odds * math.exp(score_logit)


@kernel
def _count_tokens(calibration, b, e, r, tokens, predicted_tokens, ended):
    """Count that answer r of expert e has grown to so many tokens, and whether it has ended there by itself."""
    shared, counted = calibration.lengths.shape[1] - 1, calibration.counted[b, r]
    expected = math.log(predicted_tokens) + calibration.log_median[b, e]
    before = math.log(counted) - expected if counted > 0 else -np.inf
    now = math.log(tokens) - expected
    note_length(calibration.lengths[b, shared], calibration.lengths[b, e], before, now, calibration.log_sd[b, e], ended)
    calibration.counted[b, r] = tokens


@kernel
def _look_at_running(calibration, telemetry, b):
    """Note how far the answers under way have grown."""
    for e in range(telemetry.source.experts.shape[1]):
        source = telemetry_of(telemetry, telemetry.actual.extras, e).source
        expert = source.experts[b, e]
        iteration = expert.iteration + max(steps_begun(expert, telemetry.view_s[e]) - 1, 0)
        for i in range(expert.n_dec):
            r = source.running[b, e, i]
            calibration.grown[b, r] = iteration - source.requests[b, r].start


@kernel
def _learn_answers(calibration, workload, telemetry, b):
    """Count the answers that telemetry shows as finished, each once, and those that have grown enough since they were counted.

    In order of arrival, so that nothing depends on the order of the experts.
    """
    actual, view_s = telemetry.actual, telemetry.view_s
    shared = calibration.scores.shape[1] - 1
    settled = True
    first_pending = telemetry.first_pending
    for r in range(calibration.first[b], first_pending.max()):
        record, request = actual.records[b, r], actual.requests[b, r]
        e = record.route
        if record.status == FINISHED and not record.finish_s > view_s[e]:
            if calibration.counted[b, r] != _ALL:
                cut = request.prompt + request.output >= calibration.configured[b, e].max_model_len
                _count_tokens(calibration, b, e, r, request.output, request.predicted_tokens, not cut)
                note_error(calibration.errors[b, e], request.output, request.predicted_tokens)
                if workload.judged[b, r]:
                    note_score(calibration.scores[b, shared], calibration.scores[b, e], request.predicted_score, record.score)
                calibration.counted[b, r] = _ALL
        elif record.status in (ROUTED, FINISHED):  # it will finish, or has finished and does not show it yet
            settled = False
            if r < first_pending[e] and calibration.grown[b, r] > _GROWTH * calibration.counted[b, r]:
                _count_tokens(calibration, b, e, r, calibration.grown[b, r], request.predicted_tokens, False)
        if settled:
            calibration.first[b] = r + 1


@kernel
def _learn_step(average, configured, expert, view_s):
    """Count the last complete iteration of the expert's plan at ``view_s``, if the plan only decodes."""
    if expert.plan_steps == 0 or expert.n_run > expert.n_dec:
        return
    grown = steps_begun(expert, view_s) - 2  # at view_s the iteration after that one is under way
    if grown < 0:
        return
    # The same operations as in the engine: with correct figures the ratio is 1 to the last bit.
    step_s = configured.c0_s + configured.b_s * expert.n_dec + configured.c_s * expert.context
    growth_s = configured.c_s * expert.n_dec
    note_step(average, expert.step_s + grown * expert.growth_s, step_s + grown * growth_s)


@kernel_inlined
def update_calibration(calibration, nominal, workload, telemetry, b):
    """Update the records with what telemetry shows of cluster b, and correct ``nominal`` (B, N) with them.

    Telemetry of a time that was already used changes nothing.
    """
    news = False
    for e in range(nominal.shape[1]):
        news = news or telemetry.view_s[e] > calibration.seen_s[b, e]
    if not news:
        return
    _look_at_running(calibration, telemetry, b)
    _learn_answers(calibration, workload, telemetry, b)
    for e in range(nominal.shape[1]):
        average, configured = calibration.steps[b, e], calibration.configured[b, e]
        if telemetry.view_s[e] > calibration.seen_s[b, e]:
            source = telemetry_of(telemetry, telemetry.actual.extras, e).source
            _learn_step(average, configured, source.experts[b, e], telemetry.view_s[e])
            calibration.seen_s[b, e] = telemetry.view_s[e]
        lengths, scores = learnt(calibration.lengths, b, e), learnt(calibration.scores, b, e)
        calibrate(lengths, scores, average.log, prefill_log(calibration.prefills[b, e], average), configured, nominal[b, e])
