"""B clusters driven through their workloads, one routing decision each per call."""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.jit import borrow, kernel
from rllib_envs.sim.kernels import advance, push, work_of
from rllib_envs.sim.state import DROPPED, FINISHED, REJECTED, ROUTED, TOO_LONG
from rllib_envs.sim.whatif import future_qos_with

STEP = np.dtype(
    [
        ("dt_s", "f8"),  # from this decision to the next, or to the end of the drain after the last
        ("qos", "f8"),  # QoS of the requests that finished in that time
        ("finished", "i4"), ("late", "i4"),  # how many, and how many of them missed the SLO
        ("dropped", "i4"), ("rejected", "i4"),  # 1: dropped by the router; refused by the expert, full or too small
        ("too_long", "i4"),  # 1: neither, for no expert could ever hold it
        ("marginal_qos", "f8"),  # true marginal QoS of the action, where asked for
    ],
    align=True,
)  # fmt: skip


class Workload(NamedTuple):
    """What comes, with the truth about it and what the router is told; M requests at most in each of B clusters."""

    total: NDArray[np.int32]  # (B,) requests in the episode
    arrival_s: NDArray[np.float64]  # (B, M) ascending
    prompt: NDArray[np.int32]  # (B, M) tokens
    score: NDArray[np.float32]  # (B, M, N) true, multiples of 2**-20: their sums are exact in float64
    output: NDArray[np.int32]  # (B, M, N) true tokens
    predicted_score: NDArray[np.float32]  # (B, M, N)
    predicted_tokens: NDArray[np.float32]  # (B, M, N)


def allocate_workload(batch: int, max_requests: int, n_experts: int) -> Workload:
    """Room for the workloads of B clusters."""
    table = (batch, max_requests, n_experts)
    return Workload(
        total=np.zeros(batch, np.int32),
        arrival_s=np.zeros(table[:2]),
        prompt=np.zeros(table[:2], np.int32),
        score=np.zeros(table, np.float32),
        output=np.zeros(table, np.int32),
        predicted_score=np.zeros(table, np.float32),
        predicted_tokens=np.zeros(table, np.float32),
    )


@kernel
def borrow_workload(workload):
    """The workload without reference counting (``borrow``)."""
    return Workload(
        borrow(workload.total),
        borrow(workload.arrival_s),
        borrow(workload.prompt),
        borrow(workload.score),
        borrow(workload.output),
        borrow(workload.predicted_score),
        borrow(workload.predicted_tokens),
    )


@kernel
def advance_all(state, b, slo_s, time_s):
    """Let every expert of cluster b work until ``time_s``."""
    for e in range(state.experts.shape[1]):
        expert = state.experts[b, e]
        if expert.plan_steps > 0:
            if expert.plan_end_s > time_s:
                continue
        elif expert.n_run + expert.n_wait == 0:
            continue
        advance(state.engines[b, e], expert, work_of(state, b, e), slo_s, time_s)


@kernel
def clear_step(step):
    """A step in which nothing happens."""
    step.dt_s = 0.0
    step.qos = 0.0
    step.finished = 0
    step.late = 0
    step.dropped = 0
    step.rejected = 0
    step.too_long = 0
    step.marginal_qos = 0.0


@kernel
def begin(state, workload, cursor, now_s, b, slo_s):
    """Bring an empty cluster to its first arrival."""
    cursor[b] = 0
    for r in range(workload.total[b]):
        request = state.requests[b, r]
        request.arrival_s = workload.arrival_s[b, r]
        request.prompt = workload.prompt[b, r]
        state.records[b, r].route = -1
    now_s[b] = workload.arrival_s[b, 0]


@kernel
def fits_none(engines, b, prompt):
    """Whether no expert of cluster b could ever hold a request with ``prompt`` tokens; ``engines`` (B, N) ENGINE."""
    longest = 0
    for e in range(engines.shape[1]):
        longest = max(longest, engines[b, e].max_model_len)
    return prompt >= longest


@kernel
def accepts(engine, expert, prompt):
    """Whether the expert can take a request with ``prompt`` tokens now."""
    return expert.n_wait < engine.max_waiting and prompt < engine.max_model_len


@kernel
def route(state, workload, cursor, now_s, b, action, track_future, marginal, scratch, slo_s, out):
    """Carry out one decision of cluster b (an expert's index, or N = drop) and let time pass to the next arrival.

    A request that no expert could ever hold goes to none, whatever the decision, and is not counted as dropped.
    After the last request the cluster is drained: everything finishes and is credited to this step.
    ``track_future``: 0 no counterfactual; 1 for the action taken; 2 it is in ``marginal`` (N+1,) already.
    """
    n_experts = state.experts.shape[1]
    r = cursor[b]
    request, record = state.requests[b, r], state.records[b, r]
    clear_step(out)
    qos, done, late = 0.0, 0, 0
    for e in range(n_experts):
        expert = state.experts[b, e]
        qos -= expert.qos
        done -= expert.done
        late -= expert.late
    if fits_none(state.engines, b, request.prompt):
        record.route = n_experts
        record.status = TOO_LONG
        out.too_long = 1
    elif action == n_experts:
        record.route = n_experts
        record.status = DROPPED
        out.dropped = 1
    else:
        record.route = action
        expert = state.experts[b, action]
        record.score = workload.score[b, r, action]
        request.output = workload.output[b, r, action]
        request.predicted_score = workload.predicted_score[b, r, action]
        request.predicted_tokens = workload.predicted_tokens[b, r, action]
        if track_future == 1 and accepts(state.engines[b, action], expert, request.prompt):
            future = future_qos_with(state, b, action, scratch, slo_s, now_s[b], request.prompt, request.output, record.score)
            out.marginal_qos = future - expert.future_qos
        elif track_future == 2:
            out.marginal_qos = marginal[action]
        expert.future_qos += out.marginal_qos
        if push(state.engines[b, action], expert, work_of(state, b, action), r, now_s[b]):
            record.status = ROUTED
        else:
            record.status = REJECTED
            out.rejected = 1
    cursor[b] = r + 1
    if r + 1 < workload.total[b]:
        next_s = workload.arrival_s[b, r + 1]
        advance_all(state, b, slo_s, next_s)
    else:
        advance_all(state, b, slo_s, np.inf)
        next_s = now_s[b]
        for e in range(n_experts):
            next_s = max(next_s, state.experts[b, e].clock_s)
    for e in range(n_experts):
        expert = state.experts[b, e]
        qos += expert.qos
        done += expert.done
        late += expert.late
    out.dt_s = next_s - now_s[b]
    out.qos = qos
    out.finished = done
    out.late = late
    now_s[b] = next_s


@kernel
def true_marginals(state, workload, cursor, now_s, b, scratch, slo_s, out):
    """True marginal QoS of every action (N+1,) for the arrived request.

    The change in the QoS that the cluster will have realised if the action is taken and nobody else arrives, with true lengths
    and scores; 0 for a drop or an expert that cannot take the request.
    """
    r = cursor[b]
    prompt = workload.prompt[b, r]
    n_experts = state.experts.shape[1]
    for e in range(n_experts):
        out[e] = 0.0
        if accepts(state.engines[b, e], state.experts[b, e], prompt):
            future = future_qos_with(
                state, b, e, scratch, slo_s, now_s[b], prompt, workload.output[b, r, e], workload.score[b, r, e]
            )
            out[e] = future - state.experts[b, e].future_qos
    out[n_experts] = 0.0


@kernel
def follow(state, late_state, cursor, late_cursor, b, slo_s, time_s):
    """Bring the replica of cluster b, which telemetry shows, to ``time_s`` <= now."""
    r = late_cursor[b]
    while r < cursor[b] and state.requests[b, r].arrival_s <= time_s:
        record = state.records[b, r]
        if record.status == ROUTED or record.status == FINISHED:
            e = record.route
            late_state.requests[b, r] = state.requests[b, r]
            request = late_state.requests[b, r]
            request.start = 0
            request.generated = 0
            late_state.records[b, r].score = record.score
            engine, expert, work = late_state.engines[b, e], late_state.experts[b, e], work_of(late_state, b, e)
            advance(engine, expert, work, slo_s, request.arrival_s)
            push(engine, expert, work, r, request.arrival_s)
        r += 1
    late_cursor[b] = r
    advance_all(late_state, b, slo_s, time_s)
