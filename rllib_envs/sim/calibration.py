"""Online calibration: the router learns the errors of its figures while it works.

Each expert has two moving averages. ``length_log``: log of actual over predicted output tokens, one sample for each completion.
``step_log``: log of observed over nominal iteration time, at most one sample per observation. It is of the last complete
iteration of the current plan, if that iteration only decodes. Prefill cost cannot be separated from the rest of its batch; it is
scaled alike. The exponentials of the averages correct predicted lengths at the expert, and the time coefficients of its engine.

The k-th sample moves an average by ``max(1 / (prior + k), floor)`` of its distance. So the average starts at 0 and is the
posterior mean of a fault with prior mean 0, ``sum of samples / (prior + k)``. From ``1 / floor`` samples on it is an exponential
moving average, since faults may drift. Only what telemetry shows at ``view_s`` counts. A live gateway keeps the same records with
the same functions.
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
from rllib_envs.sim.kernels import steps_begun
from rllib_envs.sim.profile import EngineProfile
from rllib_envs.sim.state import ENGINE, FINISHED, ROUTED, engine_records

LENGTH_PRIOR, LENGTH_FLOOR = 3.0, 0.02
"""A predicted length errs by some .3 in the log, a fault by as much or more. So a prior weight of few samples is enough.

With errors of .3 the average settles within .3 * sqrt(floor / (2 - floor)) = .03 of the truth. Impact-greedy on edge6 at moderate
load, change of mean QoS by calibration (8 episodes of 1000 requests): clean -.0002 +- .0005, lengths predicted at .6 of the truth
+.0028, at 1.6 +.0087; with a prior of 10 -.0003 +- .0010, +.0026, +.0079.
"""
STEP_PRIOR, STEP_FLOOR = 1.0, 0.1
"""Iteration times are frequent and free of noise. Their error comes from applying one batch's times to another batch.

As above, engines slower by 1.25 +.022, coefficients off by 1.4 either way +.009; with 3 and .05 instead +.021 and +.008, with 1
and .2 +.023 and +.010. If the figures are right, the samples are exactly 0, so fast updates lose nothing. Measured times of real
engines do scatter; a floor of .1 averages over some 20 of them.
"""

CALIBRATION = np.dtype(
    [
        ("length_log", "f8"), ("step_log", "f8"),  # averages of log(actual / predicted tokens), log(observed / nominal time)
        ("lengths", "i8"), ("steps", "i8"),  # samples so far in each
    ],
    align=True,
)  # fmt: skip


class Calibration(NamedTuple):
    """The learned corrections for the experts of B clusters, and their reference figures."""

    records: NDArray[np.void]  # (B, N) CALIBRATION
    configured: NDArray[np.void]  # (B, N) ENGINE, the figures given to the router
    first: NDArray[np.int32]  # (B,) every request before this one has been counted, or never will be
    seen_s: NDArray[np.float64]  # (B,) telemetry up to this time has been used


def allocate_calibration(batch: int, n_experts: int) -> Calibration:
    """Allocate the records of B clusters."""
    return Calibration(
        records=np.zeros((batch, n_experts), CALIBRATION),
        configured=np.zeros((batch, n_experts), ENGINE),
        first=np.zeros(batch, np.int32),
        seen_s=np.zeros(batch),
    )


def reset_calibration(calibration: Calibration, cluster: int, configured: Sequence[EngineProfile]) -> None:
    """Reset one cluster to the figures (N,) given to the router."""
    calibration.records[cluster] = np.zeros((), CALIBRATION)
    calibration.configured[cluster] = engine_records(configured)
    calibration.first[cluster] = 0
    calibration.seen_s[cluster] = 0.0


@kernel
def note_length(record, output_tokens, predicted_tokens):
    """Count a completion in a CALIBRATION record: actual and predicted output tokens."""
    record.lengths += 1
    gain = max(1.0 / (LENGTH_PRIOR + record.lengths), LENGTH_FLOOR)
    record.length_log += gain * (math.log(output_tokens / predicted_tokens) - record.length_log)


@kernel
def note_step(record, observed_s, predicted_s):
    """Count an iteration in a CALIBRATION record: observed and nominal time."""
    record.steps += 1
    gain = max(1.0 / (STEP_PRIOR + record.steps), STEP_FLOOR)
    record.step_log += gain * (math.log(observed_s / predicted_s) - record.step_log)


@kernel
def calibrate(record, configured, nominal):
    """Write into ``nominal`` the engine ``configured`` (ENGINE records) as corrected by a CALIBRATION record."""
    slower = math.exp(record.step_log)
    nominal.c0_s = configured.c0_s * slower
    nominal.b_s = configured.b_s * slower
    nominal.c_s = configured.c_s * slower
    nominal.a_s = configured.a_s * slower
    nominal.q_s = configured.q_s * slower
    nominal.c_mixed_s = configured.c_mixed_s * slower
    nominal.c0_mixed_s = configured.c0_mixed_s * slower
    nominal.length_factor = configured.length_factor * math.exp(record.length_log)


@kernel
def _learn_lengths(calibration, telemetry, b):
    """Count the completions after ``seen_s`` among the requests that telemetry shows, in order of arrival."""
    source, actual = telemetry.source, telemetry.actual
    settled = True
    for r in range(calibration.first[b], telemetry.first_pending):
        shown, status = source.records[b, r], actual.records[b, r].status
        if shown.status == FINISHED:
            if shown.finish_s > calibration.seen_s[b]:
                e = actual.records[b, r].route
                request = source.requests[b, r]
                # Longer answers would have been cut off.
                room = np.float32(calibration.configured[b, e].max_model_len - request.prompt)
                note_length(calibration.records[b, e], request.output, min(request.predicted_tokens, room))
        elif status in (ROUTED, FINISHED):  # it will finish, or has finished and does not show it yet
            settled = False
        if settled:
            calibration.first[b] = r + 1


@kernel
def _learn_step(record, configured, expert, view_s):
    """Count the last complete iteration of the expert's plan at ``view_s``, if the plan only decodes."""
    if expert.plan_steps == 0 or expert.n_run > expert.n_dec:
        return
    grown = steps_begun(expert, view_s) - 2  # at view_s the iteration after that one is under way
    if grown < 0:
        return
    # The same operations as in the engine: with correct figures the ratio is 1 to the last bit.
    step_s = configured.c0_s + configured.b_s * expert.n_dec + configured.c_s * expert.context
    growth_s = configured.c_s * expert.n_dec
    note_step(record, expert.step_s + grown * expert.growth_s, step_s + grown * growth_s)


@kernel_inlined
def update_calibration(calibration, nominal, telemetry, b):
    """Update the records with what telemetry shows of cluster b, and correct ``nominal`` (B, N) with them.

    Telemetry of a time that was already used changes nothing.
    """
    if telemetry.view_s <= calibration.seen_s[b]:
        return
    _learn_lengths(calibration, telemetry, b)
    for e in range(nominal.shape[1]):
        record, configured = calibration.records[b, e], calibration.configured[b, e]
        _learn_step(record, configured, telemetry.source.experts[b, e], telemetry.view_s)
        calibrate(record, configured, nominal[b, e])
    calibration.seen_s[b] = telemetry.view_s
