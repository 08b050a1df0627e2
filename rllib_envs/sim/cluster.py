"""B clusters driven through their workloads: the effects of a decision (``rllib_envs.decision`` has the order)."""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.jit import kernel, kernel_inlined
from rllib_envs.sim.kernels import advance, push, work_of
from rllib_envs.sim.state import (
    AT_ONCE,
    CANCELLED,
    CONFINED,
    DROPPED,
    FAILED,
    FINISHED,
    LATE,
    LOST,
    REJECTED,
    ROUTED,
    TOO_LONG,
    Arrived,
    Telemetry,
)
from rllib_envs.sim.terms import away_s, extras_of, is_allowed, promise, users
from rllib_envs.sim.whatif import future_qos_with

STEP = np.dtype(
    [
        ("dt_s", "f8"),  # from this decision to the next, or to the end of the drain after the last
        ("qos", "f8"),  # QoS of the requests that finished in that time
        ("finished", "i4"), ("late", "i4"),  # their number, and the number that missed the SLO
        ("dropped", "i4"), ("rejected", "i4"),  # 1: dropped by the router; refused by the expert, full or too small
        ("too_long", "i4"),  # 1: neither, since no expert could ever hold it
        # Whose clients gave up in that time, who went down with an expert for good, and who arrives again after that.
        ("cancelled", "i4"), ("failed", "i4"), ("retried", "i4"),
        ("marginal_qos", "f8"),  # true marginal QoS of the action, if the scenario asks for it
        # Where some expert has watts, or a price: the energy of all experts in that time, and what the request sent will cost.
        ("energy_j", "f8"), ("cost", "f8"),
    ],
    align=True,
)  # fmt: skip


class RequestTable(NamedTuple):
    """The requests with true values and the router's predictions; M requests at most in each of B clusters."""

    total: NDArray[np.int32]  # (B,) requests in the episode
    arrival_s: NDArray[np.float64]  # (B, M) ascending
    prompt: NDArray[np.int32]  # (B, M) tokens
    score: NDArray[np.float32]  # (B, M, N) true, multiples of 2**-20: their sums are exact in float64
    output: NDArray[np.int32]  # (B, M, N) true tokens
    predicted_score: NDArray[np.float32]  # (B, M, N)
    predicted_tokens: NDArray[np.float32]  # (B, M, N)
    predicted_log_sd: NDArray[np.float32]  # (B, M, N)
    judged: NDArray[np.bool_]  # (B, M) whether the score of the answer becomes known when it has finished
    user: NDArray[np.void]  # (B, M) USER
    age_s: NDArray[np.float64]  # (B, M) time since its first arrival, of one that arrives again; else 0


def allocate_request_table(batch: int, max_requests: int, n_experts: int) -> RequestTable:
    """Allocate the workloads of B clusters."""
    table = (batch, max_requests, n_experts)
    return RequestTable(
        total=np.zeros(batch, np.int32),
        arrival_s=np.zeros(table[:2]),
        prompt=np.zeros(table[:2], np.int32),
        score=np.zeros(table, np.float32),
        output=np.zeros(table, np.int32),
        predicted_score=np.zeros(table, np.float32),
        predicted_tokens=np.zeros(table, np.float32),
        predicted_log_sd=np.zeros(table, np.float32),
        judged=np.zeros(table[:2], np.bool_),
        user=np.broadcast_to(users(max_requests), table[:2]).copy(),
        age_s=np.zeros(table[:2]),
    )


@kernel
def is_due(expert, time_s):
    """Whether ``advance`` to ``time_s`` may change the expert."""
    if expert.plan_steps > 0:
        return expert.plan_end_s <= time_s
    return expert.n_run + expert.n_wait > 0


@kernel
def advance_all(state, b, time_s):
    """Advance every expert of cluster b to ``time_s``."""
    for e in range(state.experts.shape[1]):
        expert = state.experts[b, e]
        if is_due(expert, time_s):
            advance(state.engines[b, e], expert, work_of(state, b, e), time_s)


@kernel
def clear_step(step):
    """Clear a step record."""
    step.dt_s = 0.0
    step.qos = 0.0
    step.finished = 0
    step.late = 0
    step.dropped = 0
    step.rejected = 0
    step.too_long = 0
    step.cancelled = 0
    step.failed = 0
    step.retried = 0
    step.marginal_qos = 0.0
    step.energy_j = 0.0
    step.cost = 0.0


@kernel
def _note_classes(workload, b, extras):
    """Write the service class of each request of cluster b into its extras."""
    if extras is not None:
        for r in range(workload.total[b]):
            extras[r].service = workload.user[b, r].service


@kernel
def begin(state, workload, cursor, now_s, b):
    """Advance an empty cluster to its first arrival."""
    cursor[b] = 0
    for r in range(workload.total[b]):
        request = state.requests[b, r]
        request.arrival_s = workload.arrival_s[b, r]
        request.prompt = workload.prompt[b, r]
        state.records[b, r].route = -1
    _note_classes(workload, b, extras_of(state.extras, b))
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
def _kept_out(state, extras, service, user, b, prompt):
    """Whether some expert of cluster b can take a request of this USER now, but none that it may go to."""
    elsewhere = False
    for e in range(state.experts.shape[1]):
        if accepts(state.engines[b, e], state.experts[b, e], prompt):
            if is_allowed(extras, service, user, e):
                return False
            elsewhere = True
    return elsewhere


@kernel
def as_it_is(workload, extras, service, b, r, e, arrival_s):
    """Request r of cluster b as expert e would get it, with true values."""
    user = workload.user[b, r]
    return Arrived(
        arrival_s,
        workload.prompt[b, r],
        workload.output[b, r, e],
        workload.score[b, r, e],
        workload.predicted_score[b, r, e],
        workload.predicted_tokens[b, r, e],
        user.service,
        away_s(extras, service, user, workload.age_s[b, r], e, workload.prompt[b, r], user.jitter),
    )


@kernel_inlined
def marginal_qos(state, workload, b, r, e, now_s, scratch):
    """True marginal QoS of sending request r to expert e; 0 where the expert cannot take it, or where it may not go.

    It is the change that this makes to the cluster's realised QoS, with no further arrivals and with true lengths and scores.
    """
    if not accepts(state.engines[b, e], state.experts[b, e], workload.prompt[b, r]):
        return 0.0
    if not is_allowed(state.extras, scratch.service, workload.user[b, r], e):
        return 0.0
    arrived = as_it_is(workload, state.extras, scratch.service, b, r, e, now_s)
    return future_qos_with(state, b, e, arrived, scratch) - state.experts[b, e].future_qos


@kernel
def _note_priority(extras, r, service):
    """Write the priority of request r, which is being sent."""
    if extras is not None:
        extras[r].priority = service.terms[extras[r].service].priority


@kernel
def _promise_sent(record, extras, r, service, user, age_s, e, request):
    """Write what request r is promised at expert e, to which it has been sent."""
    if extras is None:
        promise(record, None, r, service.terms[0], request.output, 0.0)
    else:
        extras[r].network_s = away_s(extras, service, user, age_s, e, request.prompt, 1.0)
        took_s = away_s(extras, service, user, age_s, e, request.prompt, user.jitter)
        promise(record, extras, r, service.terms[extras[r].service], request.output, took_s)


@kernel_inlined
def route(state, workload, service, b, r, action, now_s, marginal, step):
    """Send request r of cluster b to an expert (its index, or N = drop); clears ``step`` (STEP), then records a failure there.

    A request never goes to an expert that ``service`` does not allow, whatever the decision. It is then rejected, as it is if it
    is dropped while only other experts can take it. A request that no expert could ever hold is not routed, whatever the
    decision, and does not count as dropped. ``marginal`` is the true marginal QoS of the action if it is in use, else 0.
    """
    clear_step(step)
    step.marginal_qos = marginal
    n_experts = state.experts.shape[1]
    request, record, user = state.requests[b, r], state.records[b, r], workload.user[b, r]
    extras = extras_of(state.extras, b)
    if fits_none(state.engines, b, request.prompt):
        record.route = n_experts
        record.status = TOO_LONG
        step.too_long = 1
    elif (
        _kept_out(state, extras, service, user, b, request.prompt)
        if action == n_experts
        else not is_allowed(extras, service, user, action)
    ):
        record.route = n_experts
        record.status = CONFINED
        step.rejected = 1
    elif action == n_experts:
        record.route = n_experts
        record.status = DROPPED
        step.dropped = 1
    else:
        record.route = action
        record.score = workload.score[b, r, action]
        request.output = workload.output[b, r, action]
        request.predicted_score = workload.predicted_score[b, r, action]
        request.predicted_tokens = workload.predicted_tokens[b, r, action]
        _note_priority(extras, r, service)
        expert = state.experts[b, action]
        expert.future_qos += marginal
        if push(state.engines[b, action], expert, work_of(state, b, action), r, now_s):
            record.status = ROUTED
            _promise_sent(record, extras, r, service, user, workload.age_s[b, r], action, request)
        else:
            record.status = REJECTED
            step.rejected = 1


@kernel_inlined
def advance_to_next(state, workload, cursor, now_s, b, step):
    """Advance cluster b to the next arrival; ``step`` (STEP) is credited with the requests that finish until then.

    After the last request the cluster is drained: everything finishes and is credited to this step.
    """
    n_experts = state.experts.shape[1]
    qos, done, late = 0.0, 0, 0
    for e in range(n_experts):
        expert = state.experts[b, e]
        qos -= expert.qos
        done -= expert.done
        late -= expert.late
    cursor[b] += 1
    if cursor[b] < workload.total[b]:
        next_s = workload.arrival_s[b, cursor[b]]
        advance_all(state, b, next_s)
    else:
        advance_all(state, b, np.inf)
        next_s = now_s[b]
        for e in range(n_experts):
            next_s = max(next_s, state.experts[b, e].clock_s)
    for e in range(n_experts):
        expert = state.experts[b, e]
        qos += expert.qos
        done += expert.done
        late += expert.late
    step.dt_s = next_s - now_s[b]
    step.qos = qos
    step.finished = done
    step.late = late
    now_s[b] = next_s


@kernel_inlined
def sync_telemetry(state, late, views, cursor, delay_s, now_s, b):
    """Telemetry of cluster b now. If it is delayed, it shows ``late``, advanced to ``delay_s`` before now."""
    r, at_s = cursor[b], now_s[b]
    first_pending, held, view_s = views.first_pending[b], views.held[b], views.view_s[b]
    if views.kind[b] == AT_ONCE:
        for e in range(view_s.size):
            first_pending[e] = r
            view_s[e] = at_s
        return Telemetry(state, state, held, first_pending, r, view_s, at_s)
    if views.kind[b] == LATE:
        time_s = max(at_s - delay_s[b], 0.0)
        _follow(state, late, first_pending, b, r, time_s)
        for e in range(view_s.size):
            view_s[e] = time_s
    return Telemetry(late, state, held, first_pending, r, view_s, at_s)


@kernel
def was_accepted(record):
    """Whether the request went into an expert's queue."""
    return record.status in (ROUTED, FINISHED, CANCELLED, FAILED, LOST)


@kernel
def _copy_extra(extras, late, r):
    """Copy the extras of request r."""
    if extras is not None:
        late[r] = extras[r]


@kernel
def copy_sent(state, late, b, r):
    """Copy an accepted request of cluster b to a replica, as it was when it was sent."""
    late.requests[b, r] = state.requests[b, r]
    request = late.requests[b, r]
    request.start = 0
    request.generated = 0
    late.records[b, r].score = state.records[b, r].score
    late.records[b, r].budget_s = state.records[b, r].budget_s
    _copy_extra(extras_of(state.extras, b), extras_of(late.extras, b), r)


@kernel
def _follow(state, late, first_pending, b, arrived, time_s):
    """Advance the replica of cluster b to ``time_s`` <= now, with the requests before ``arrived`` sent by then."""
    r = first_pending[0]
    while r < arrived and state.requests[b, r].arrival_s <= time_s:
        if was_accepted(state.records[b, r]):
            e = state.records[b, r].route
            copy_sent(state, late, b, r)
            engine, expert, work = late.engines[b, e], late.experts[b, e], work_of(late, b, e)
            advance(engine, expert, work, late.requests[b, r].arrival_s)
            push(engine, expert, work, r, late.requests[b, r].arrival_s)
        r += 1
    for e in range(first_pending.size):
        first_pending[e] = r
    advance_all(late, b, time_s)


@kernel_inlined
def true_marginals(state, workload, b, r, now_s, scratch, out):
    """Fill ``out`` (N+1,) with the true marginal QoS of every action for request r; 0 for a drop, and after the last request."""
    n_experts = state.experts.shape[1]
    for e in range(n_experts):
        out[e] = marginal_qos(state, workload, b, r, e, now_s, scratch) if r < workload.total[b] else 0.0
    out[n_experts] = 0.0
