"""The plan of an expert: the iterations that it repeats until its next event, with the times and blocks that they take.

Between two events a decode-only batch repeats one iteration, and its context grows by B tokens each time. So k iterations take
``k*T + c*B*k*(k-1)/2``. The plan of an expert is such a leap, or one iteration with prefill.
"""

# Values of ``state.experts[b, e]`` are numba records: assigning to their fields writes the array.
# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math

import numpy as np

from rllib_envs.sim.jit import kernel
from rllib_envs.sim.profile import BLOCK_TOKENS

BLOCK_MASK = BLOCK_TOKENS - 1


@kernel
def blocks_of(tokens):
    """KV blocks that hold ``tokens`` tokens."""
    return (tokens + BLOCK_MASK) // BLOCK_TOKENS


@kernel
def leap_s(expert, steps):
    """Seconds that the first ``steps`` iterations of the plan take."""
    return steps * expert.step_s + expert.growth_s * (0.5 * steps * (steps - 1))


@kernel
def steps_begun(expert, time_s):
    """Smallest j >= 1 such that the plan's first j iterations end at or after ``time_s``; at most the whole plan.

    At ``time_s`` iterations 1 to j-1 are complete and the j-th is under way.
    """
    if expert.plan_steps <= 1:
        return expert.plan_steps
    span = time_s - expert.clock_s
    half = 0.5 * expert.growth_s
    linear = expert.step_s - half  # leap_s = half*j^2 + linear*j, inverted in a form that is stable for half -> 0
    j = math.ceil(2.0 * span / (linear + math.sqrt(linear * linear + 4.0 * half * span)))
    j = max(1, min(j, expert.plan_steps))
    while j > 1 and expert.clock_s + leap_s(expert, j - 1) >= time_s:
        j -= 1
    while j < expert.plan_steps and expert.clock_s + leap_s(expert, j) < time_s:
        j += 1
    return j


@kernel
def blocks_crossed(expert, first, last):
    """KV blocks that the decoding requests take in iterations first..last-1 of the plan (0 is its first)."""
    crossed = 0
    rounds = (last - first) // BLOCK_TOKENS
    if rounds > 0:
        crossed = rounds * expert.n_dec
        first += rounds * BLOCK_TOKENS
    for r in range(first, last):
        crossed += expert.phase[-(expert.iteration + r) & BLOCK_MASK]
    return crossed


@kernel
def cut_after(expert, steps):
    """End the plan after ``steps`` of its iterations."""
    expert.plan_steps = steps
    expert.plan_end_s = expert.clock_s + leap_s(expert, steps)


@kernel
def cut_at(expert, time_s):
    """End the plan with the iteration that is under way at ``time_s``."""
    if expert.plan_steps > 1:
        cut_after(expert, steps_begun(expert, time_s))


@kernel
def queued_s(engine, request):
    """Time at which the request reaches the engine's queue."""
    return request.arrival_s + engine.handoff_s


@kernel
def cut_for(engine, expert, time_s):
    """End the plan so that the next composed step includes a request queued at ``time_s``.

    That is the end of the iteration under way then, or, if steps are composed ahead, of the one after it.
    """
    if engine.ahead == 0:
        cut_at(expert, time_s)
    elif expert.plan_steps > 1:
        steps = 1 if time_s <= expert.clock_s else 1 + steps_begun(expert, time_s)
        if steps < expert.plan_steps:
            cut_after(expert, steps)


@kernel
def earliest_queued_s(engine, expert, work, first):
    """Earliest time at which one of the first ``first`` (>= 1) requests of the waiting list reaches the engine's queue."""
    earliest_s = np.inf
    for i in range(first):
        index = work.waiting[(expert.wait_head + i) & work.last]
        earliest_s = min(earliest_s, queued_s(engine, work.requests[index]))
    return earliest_s


@kernel
def busy_until(expert, time_s):
    """Seconds that the expert has spent in iterations by ``time_s``, to which it has been advanced."""
    return expert.busy_s + (time_s - expert.clock_s if expert.plan_steps > 0 else 0.0)
