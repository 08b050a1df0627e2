"""The state of B clusters of N experts as NumPy arrays with a leading batch axis.

The scalars of one expert, or of one request, form a record. A kernel touches all scalars of an expert in one or two cache lines,
and passes them on as one pointer. NumPy code sees a field of all experts as a (B, N) view, ``state.experts["n_run"]``. Lists of
requests (running, waiting) are integer arrays beside the records.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.profile import BLOCK_TOKENS, EngineProfile

NEVER = np.iinfo(np.int32).max
"""Finish iteration of a request that is still in prefill."""

# Progress of a request (field ``status`` of a RECORD). TOO_LONG: its prompt fits no expert, whatever the router did. CONFINED: it
# is rejected, as no expert that it may go to can take it. CANCELLED: its client gave up. FAILED: its expert failed, and it is not
# sent again. LOST: its expert failed, and it arrives again, as another row of the tables.
PENDING, ROUTED, FINISHED, DROPPED, REJECTED, TOO_LONG, CONFINED, CANCELLED, FAILED, LOST = range(10)

ENGINE = np.dtype(
    [
        # The cost model in seconds, overhead included.
        ("c0_s", "f8"), ("b_s", "f8"), ("c_s", "f8"), ("a_s", "f8"), ("q_s", "f8"), ("c_mixed_s", "f8"), ("c0_mixed_s", "f8"),
        ("handoff_s", "f8"),  # from the router's decision to the engine's queue
        ("n0", "i4"),
        ("blocks", "i4"),  # usable KV blocks
        ("max_seqs", "i4"), ("max_tokens", "i4"), ("max_model_len", "i4"), ("max_waiting", "i4"),
        ("reuse", "i4"),  # 1: preempted requests reuse their own untouched blocks
        ("ahead", "i4"),  # 1: an iteration is composed as the one before it begins
        ("by_priority", "i4"),  # 1: requests are served by priority, then arrival; 0: first come, first served
        # The router's factors on predicted lengths and on the odds of predicted scores, learned by calibration.
        ("length_factor", "f4"), ("score_odds", "f4"),
        ("filler", "i4"),  # no byte is left undefined: states can be compared as bytes
    ],
    align=True,
)  # fmt: skip

EXPERT = np.dtype(
    [
        # The plan: ``plan_steps`` iterations from ``clock`` to ``plan_end_s``, the r-th of which takes step_s + r*growth_s.
        # plan_steps = 0: nothing is planned; the next step is composed at ``clock`` if there is a request to serve.
        ("clock_s", "f8"), ("plan_end_s", "f8"), ("step_s", "f8"), ("growth_s", "f8"),
        ("known_s", "f8"),  # requests queued by then are known to the step composed at ``clock``
        ("plan_steps", "i4"),
        ("n_run", "i4"),  # running requests; the first n_dec of them decode, the rest are in prefill in this plan
        ("n_dec", "i4"),
        ("n_wait", "i4"), ("wait_head", "i4"),
        ("partial", "i4"),  # 1: the last running request is still in prefill after this plan
        ("pre_done", "i4"), ("pre_chunk", "i4"),  # its tokens cached before this plan, and computed in it
        ("iteration", "i8"),  # iterations completed at ``clock``
        ("min_finish", "i8"),  # first iteration at whose end a decoding request is complete
        ("context", "i8"),  # cached tokens of the decoding requests at ``clock``
        ("cached", "i8"),  # cached tokens of the requests in prefill at ``clock``
        # The free blocks are a queue: ``freed`` counts blocks put in at its end, ``taken`` those taken from its front.
        ("freed", "i8"), ("taken", "i8"),
        # Seats and blocks of those complete at ``clock``, until a step is composed after their last token is known.
        ("leaving", "i4"), ("leaving_blocks", "i4"),
        # Decoding requests by (cached tokens - iteration) modulo the block size: when each needs a new block.
        ("phase", "i4", (BLOCK_TOKENS,)),
        # Totals since the start.
        ("busy_s", "f8"), ("kv_token_s", "f8"), ("qos", "f8"),
        ("done", "i8"), ("late", "i8"), ("preempted", "i8"), ("routed", "i8"),
        ("future_qos", "f8"),  # QoS of all requests sent here so far, at their end, if no more arrive (counterfactual)
        ("idle", "i4"),  # decoding requests, the last ones, that this plan leaves out (scheduling by priority only)
        ("filler", "i4"),  # no byte is left undefined: states can be compared as bytes
    ],
    align=True,
)  # fmt: skip

REQUEST = np.dtype(
    [
        # Fields that every step and every observation reads: two requests fit in a cache line.
        ("arrival_s", "f8"),
        ("predicted_score", "f4"), ("predicted_tokens", "f4"),  # at the expert it was sent to
        ("start", "i4"),  # iteration of its expert minus tokens generated, while decoding
        ("generated", "i4"),  # tokens generated at its last preemption
        ("prompt", "i4"), ("output", "i4"),  # tokens; output: true, at the expert it was sent to, cut at max_model_len
    ],
    align=True,
)  # fmt: skip

RECORD = np.dtype(
    [
        # The outcome of a request: one cache line.
        ("status", "i4"), ("route", "i4"),
        ("first_scheduled_s", "f8"), ("first_token_s", "f8"), ("finish_s", "f8"),  # NaN: not yet
        ("budget_s", "f8"),  # that it may take from arrival to finish, since it was sent
        ("cache_end", "i8"), ("cache_blocks", "i4"),  # end of its full blocks in the free queue; their number
        ("preemptions", "i4"),
        ("score", "f4"),  # true, at the expert it was sent to
        ("filler", "i4"),  # no byte is left undefined: states can be compared as bytes
    ],
    align=True,
)  # fmt: skip

EXTRA = np.dtype(
    [
        # What else a request is promised since it was sent (sim/terms.py), where a scenario has any of its optional parts.
        ("ttft_s", "f8"), ("generation_s", "f8"),  # that it may take from arrival to first token, and from there to finish
        ("worth", "f8"),  # QoS if it is in time
        ("network_s", "f8"),  # mean time of the network between its user and its expert, and since its first arrival
        ("service", "i4"), ("priority", "i4"),  # its service class, and that class's priority since it was sent
    ],
    align=True,
)  # fmt: skip


class State(NamedTuple):
    """B clusters of N experts; M requests at most in an episode."""

    engines: NDArray[np.void]  # (B, N) ENGINE
    experts: NDArray[np.void]  # (B, N) EXPERT
    requests: NDArray[np.void]  # (B, M) REQUEST
    records: NDArray[np.void]  # (B, M) RECORD
    extras: NDArray[np.void] | None  # (B, M) EXTRA; None: a plain scenario, and code for the optional parts is left out
    running: NDArray[np.int32]  # (B, N, R) requests running, in order of admission
    finish_at: NDArray[np.int32]  # (B, N, R) iteration at whose end each is complete
    waiting: NDArray[np.int32]  # (B, N, W) ring buffer of requests waiting, W a power of two


class Work(NamedTuple):
    """The lists of one expert and the tables of its cluster, as ``Items``: a kernel's inputs beside the expert's own record."""

    requests: Any  # (M,) REQUEST
    records: Any  # (M,) RECORD
    extras: Any  # (M,) EXTRA; None: a plain scenario
    running: Any  # (R,) int32
    finish_at: Any  # (R,) int32
    waiting: Any  # (W,) int32
    last: int  # W - 1, of which all bits are set


class Telemetry(NamedTuple):
    """The known state of a cluster at an arrival, and the time of that state."""

    source: State  # the cluster as telemetry shows it, each expert at its ``view_s``
    actual: State  # the cluster as it is: where requests were sent
    held: NDArray[np.bool_]  # (N,) experts that ``source`` shows; the others are shown by ``actual``, as they are
    first_pending: NDArray[
        np.int32
    ]  # (N,) requests from this one on, and before the arrived one, have been sent since ``view_s``
    arrived: int  # number of the arrived request; the total number after all have arrived
    view_s: NDArray[np.float64]  # (N,)
    now_s: float


AT_ONCE, LATE, HELD, FOLLOWED = range(4)


class Views(NamedTuple):
    """How telemetry shows the N experts of B clusters.

    AT_ONCE, LATE by a fixed time, HELD while it is stopped and else at once, or FOLLOWED: both late and stopped (``living.py``).
    """

    kind: NDArray[np.int8]  # (B,)
    held: NDArray[np.bool_]  # (B, N) as in ``Telemetry``
    first_pending: NDArray[np.int32]  # (B, N) as in ``Telemetry``
    view_s: NDArray[np.float64]  # (B, N)


def allocate_views(batch: int, n_experts: int) -> Views:
    """The views of B clusters, at once."""
    shape = (batch, n_experts)
    held = np.zeros(shape, np.bool_)
    return Views(kind=np.zeros(batch, np.int8), held=held, first_pending=np.zeros(shape, np.int32), view_s=np.zeros(shape))


class Arrived(NamedTuple):
    """A request as one expert would get it."""

    arrival_s: float
    prompt: int  # tokens
    output: int  # tokens, true or expected
    score: float  # true; 0 if not known
    predicted_score: float
    predicted_tokens: float
    service: int  # its service class
    network_s: float  # time of the network, true or expected


def engine_records(profiles: Sequence[EngineProfile]) -> NDArray[np.void]:
    """(N,) ENGINE records of the profiles."""
    records = np.zeros(len(profiles), ENGINE)
    records["length_factor"] = records["score_odds"] = 1
    for record, p in zip(records, profiles, strict=True):
        scale = p.overhead * 1e-3
        for name, ms in (
            ("c0_s", p.c0_ms),
            ("b_s", p.b_ms),
            ("c_s", p.c_ms),
            ("a_s", p.a_ms),
            ("q_s", p.q_ms),
            ("c_mixed_s", p.c_mixed_ms),
            ("c0_mixed_s", p.c0_mixed_ms),
        ):
            record[name] = ms * scale
        record["n0"], record["blocks"], record["reuse"] = p.n0_tokens, p.usable_blocks, p.reuse_preempted_blocks
        record["ahead"], record["handoff_s"] = p.async_scheduling, p.handoff_s
        record["by_priority"] = p.scheduling == "priority"
        record["max_seqs"], record["max_tokens"] = p.max_num_seqs, p.max_num_batched_tokens
        record["max_model_len"], record["max_waiting"] = p.max_model_len, p.max_waiting
    return records


def allocate(engines: NDArray[np.void], max_requests: int, *, plain: bool) -> State:
    """An empty state for the engines (B, N), with room for ``max_requests`` requests in each cluster.

    ``plain``: without extras.
    """
    batch, n_experts = engines.shape
    slots = int(engines["max_seqs"].max())
    queue = 1 << int(engines["max_waiting"].max() + slots - 1).bit_length()  # preempted requests come on top of max_waiting
    state = State(
        engines=engines,
        experts=np.zeros((batch, n_experts), EXPERT),
        requests=np.zeros((batch, max_requests), REQUEST),
        records=np.zeros((batch, max_requests), RECORD),
        extras=None if plain else np.zeros((batch, max_requests), EXTRA),
        running=np.zeros((batch, n_experts, slots), np.int32),
        finish_at=np.zeros((batch, n_experts, slots), np.int32),
        waiting=np.zeros((batch, n_experts, queue), np.int32),
    )
    for cluster in range(batch):
        clear(state, cluster)
    return state


def clear(state: State, cluster: int) -> None:
    """Empty one cluster: idle experts at time 0, no requests."""
    state.experts[cluster] = np.zeros((), EXPERT)
    state.experts["freed"][cluster] = state.engines["blocks"][cluster]
    state.experts["min_finish"][cluster] = NEVER
    state.requests[cluster] = np.zeros((), REQUEST)
    state.records[cluster] = np.zeros((), RECORD)
    if state.extras is not None:
        state.extras[cluster] = np.zeros((), EXTRA)
    for name in ("first_scheduled_s", "first_token_s", "finish_s"):
        state.records[name][cluster] = np.nan
