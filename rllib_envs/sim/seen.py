"""The state of a cluster as somebody in front of the engines sees it: what was sent, and the tokens that came back.

Nobody there sees an engine's queue. A request without a token waits, in the order in which it was sent; one with tokens runs, in
the order of its first token. When an iteration ends its tokens come, so the last of them say when the iteration under way began.
``rebuild`` composes that iteration by the engine's own rules, which also says whose prompts it computes. How far a prompt is that
takes several iterations is not known: it is taken to begin now. Nor is it known who was preempted.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.calibration import note_step
from rllib_envs.sim.jit import kernel
from rllib_envs.sim.kernels import blocks_of, empty, push, queued_s, schedule, work_of
from rllib_envs.sim.profile import BLOCK_TOKENS
from rllib_envs.sim.state import NEVER

_MOST_STEP = 2.0  # furthest that a sample counts from what was learned, as a ratio: an engine that stalls once is not slow
_LEAST_SHARE = 0.25  # prefill over decoding in an iteration that shows what prefill takes
_KEPT_S = 60.0  # what was learned of an expert is forgotten by half in so much time, once it has been idle for as long

NOWHERE = -1
"""In place of an expert: the request is not under way."""


class Seen(NamedTuple):
    """What W gateways in front of the same N experts see of requests under way, M rows at most each; one sees what all do."""

    expert: NDArray[np.int32]  # (W, M) NOWHERE: not under way; it is written last
    tokens: NDArray[np.int32]  # (W, M) streamed so far
    prompt: NDArray[np.int32]  # (W, M) tokens
    service: NDArray[np.int32]  # (W, M) service class
    predicted_tokens: NDArray[np.float64]  # (W, M) of the answer
    predicted_score: NDArray[np.float64]  # (W, M)
    sent_s: NDArray[np.float64]  # (W, M) time of the decision
    first_s: NDArray[np.float64]  # (W, M) time of the first token, NaN before; where tokens are not seen, its prediction
    pace_s: NDArray[np.float64]  # (W, M) predicted time per token where tokens are not seen until the end; else 0
    began_s: NDArray[np.float64]  # (W, N) when the iteration under way began: at the last token, or when a request came to nobody
    before_s: NDArray[np.float64]  # (W, N) the same of the iteration before it
    present: NDArray[np.int64]  # (W, N) requests under way
    changes: NDArray[np.int64]  # (W, N) times that a request came, got its first token or went
    rows: NDArray[np.int64]  # (W,) rows in use
    arrivals: NDArray[np.int64]  # (W,) requests so far


def seen_fields(gateways: int, rows: int, n_experts: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each array of ``Seen``."""
    requests, experts, each = (gateways, rows), (gateways, n_experts), (gateways,)
    whole = dict.fromkeys(("expert", "tokens", "prompt", "service"), (requests, "i4"))
    real = ("predicted_tokens", "predicted_score", "sent_s", "first_s", "pace_s")
    return {
        **whole,
        **dict.fromkeys(real, (requests, "f8")),
        "began_s": (experts, "f8"),
        "before_s": (experts, "f8"),
        "present": (experts, "i8"),
        "changes": (experts, "i8"),
        "rows": (each, "i8"),
        "arrivals": (each, "i8"),
    }


def clear_seen(seen: Seen, gateway: int) -> None:
    """Nothing is under way at one gateway, and nothing has been."""
    for array in seen:
        array[gateway] = 0
    seen.expert[gateway] = NOWHERE
    seen.first_s[gateway] = np.nan
    seen.began_s[gateway] = seen.before_s[gateway] = -np.inf


class Marks(NamedTuple):
    """What was seen of N experts at the last observation."""

    began_s: NDArray[np.float64]  # (N,) when the iteration under way then began
    changes: NDArray[np.int64]  # (N,) -1: nothing was seen
    before_s: NDArray[np.float64]  # (N,) when the iteration before that one began
    busy_s: NDArray[np.float64]  # (N,) when it was seen with a request the last time


@kernel
def _note(average, observed_s, nominal_s):
    """Count a sample in an AVERAGE record, no further from the average than ``_MOST_STEP``."""
    usual_s = nominal_s * math.exp(average.log)
    note_step(average, min(max(observed_s, usual_s / _MOST_STEP), usual_s * _MOST_STEP), nominal_s)


@kernel
def _learn_decoding(average, expert, engine, lists, seen, me, marks, e):
    """Count the iterations since the last observation, of an expert where nothing else than decoding happened."""
    if expert.n_run == 0 or expert.n_run > expert.n_dec or expert.n_wait > 0:
        return
    iterations = 0
    for i in range(expert.n_dec):
        r = lists.running[i]
        if r < seen.tokens.shape[1] and seen.pace_s[me, r] == 0.0:
            iterations = seen.tokens[me, r] - lists.requests[r].generated
            break
    took_s = seen.began_s[:, e].max() - marks.began_s[e]
    if iterations > 0 and took_s > 0.0:
        context = expert.context + 0.5 * expert.n_dec * (iterations - 1)
        nominal_s = iterations * (engine.c0_s + engine.b_s * expert.n_dec + engine.c_s * context)
        _note(average, took_s, nominal_s)


@kernel
def prefill_s(engine, prompt):
    """Time that the prompt of a request adds to an iteration."""
    return engine.c0_mixed_s + engine.a_s * max(0, prompt - engine.n0) + engine.q_s * (0.5 * prompt * prompt)


@kernel
def _learn_prefill(average, step_log, expert, engine, lists, seen, me, marks, e):
    """Count the iteration that was under way at the last observation, if it computed prompts and has ended since.

    It ended with the first tokens of these prompts. What decoding takes of it is subtracted. Left out are prompts that may take
    several iterations, and an expert that has no room for all: nobody can be sure there whose prompts an iteration computes.
    """
    if expert.n_run == expert.n_dec or expert.partial == 1:
        return
    if expert.n_wait > 0 and queued_s(engine, lists.requests[lists.waiting[expert.wait_head]]) <= expert.known_s:
        return
    prompts, before, attention = 0, 0, 0.0
    for i in range(expert.n_dec):
        r = lists.running[i]
        if lists.records[r].first_token_s > marks.before_s[e]:  # its prompt was computed in the iteration before
            before += lists.requests[r].prompt
    for i in range(expert.n_dec, expert.n_run):
        request = lists.requests[lists.running[i]]
        if request.generated > 0:
            return
        prompts += request.prompt
        attention += 0.5 * request.prompt * request.prompt
    r = lists.running[expert.n_dec]
    if r >= seen.tokens.shape[1] or seen.pace_s[me, r] > 0.0 or not seen.first_s[me, r] > marks.began_s[e]:
        return
    if seen.expert[me, r] not in (e, NOWHERE):  # it was sent on
        return
    if before + prompts + expert.n_dec > engine.max_tokens:
        return
    began_s = marks.began_s[e] if expert.n_dec > 0 else max(marks.began_s[e], queued_s(engine, lists.requests[r]))
    decode_s = (engine.c0_s + engine.b_s * expert.n_dec + engine.c_s * expert.context) * math.exp(step_log)
    nominal_s = (
        engine.c0_mixed_s
        + engine.a_s * max(0, prompts + expert.n_dec - engine.n0)
        + engine.q_s * attention
        + engine.c_mixed_s * expert.context
    )
    if nominal_s > _LEAST_SHARE * decode_s:
        if average.samples == 0:
            average.log = step_log
        _note(average, seen.first_s[me, r] - began_s - decode_s, nominal_s)


@kernel
def learn_steps(state, calibration, seen, me, marks, now_s):
    """Learn from tokens how long iterations take, of decoding alone and of prefill.

    Of each expert there is one sample of each at most for an observation: the time over the nominal one. It has to be called
    before ``rebuild``, as it reads what that wrote the last time.

    Args:
        state: as it was rebuilt at the last observation.
        calibration: of one cluster.
        seen: by all gateways.
        me: number of the gateway.
        marks: of the last observation; they become those of this one.
        now_s: the time.
    """
    for e in range(calibration.configured.shape[1]):
        expert, engine, lists = state.experts[0, e], calibration.configured[0, e], work_of(state, 0, e)
        step, prefill = calibration.steps[0, e], calibration.prefills[0, e]
        changes = seen.changes[:, e].sum()
        if marks.changes[e] == changes:
            _learn_decoding(step, expert, engine, lists, seen, me, marks, e)
        elif marks.changes[e] >= 0:
            _learn_prefill(prefill, step.log, expert, engine, lists, seen, me, marks, e)
        old_s = now_s - marks.busy_s[e] - _KEPT_S
        if seen.present[:, e].sum() > 0 or marks.changes[e] != changes:
            marks.busy_s[e] = now_s
        elif old_s > 0.0:
            kept = 0.5 ** (old_s / _KEPT_S)  # it may be avoided as slow: let it be tried again
            step.log *= kept
            prefill.log *= kept
            marks.busy_s[e] += old_s
        marks.began_s[e] = seen.began_s[:, e].max()
        marks.before_s[e] = seen.before_s[:, e].max()
        marks.changes[e] = changes


@kernel
def _tokens_by(seen, w, r, now_s):
    """Tokens of the request in row r by now: those seen, or as many as it should have where they are not seen."""
    if seen.pace_s[w, r] == 0.0:
        return seen.tokens[w, r]
    if not now_s >= seen.first_s[w, r]:
        return np.int32(0)
    return np.int32(1 + min((now_s - seen.first_s[w, r]) / seen.pace_s[w, r], 1e9))


@kernel
def _clear(engine, expert):
    empty(engine, expert)
    expert.clock_s = -np.inf
    expert.min_finish = 1
    expert.wait_head = 0
    expert.pre_done = 0
    expert.pre_chunk = 0


@kernel
def _enter(engine, expert, work, seen, w, r, index, now_s):
    """Put the request of row r of gateway w where it is taken to be: among the running ones, or into the queue.

    ``index``: its number in the state.
    """
    request, record, running = work.requests[index], work.records[index], work.running
    tokens = min(_tokens_by(seen, w, r, now_s), engine.max_model_len - request.prompt - 1)
    if seen.pace_s[w, r] > 0.0:  # it would have been told of the end
        tokens = min(tokens, max(np.int32(request.predicted_tokens * engine.length_factor) - 1, 1))
    request.generated = max(tokens, 0)
    request.start = -request.generated
    record.first_scheduled_s = np.nan
    record.first_token_s = seen.first_s[w, r] if request.generated > 0 else np.nan
    cached = request.prompt + request.generated - 1
    blocks = blocks_of(cached)
    if request.generated == 0 or expert.n_run == engine.max_seqs or blocks > expert.freed - expert.taken:
        push(engine, expert, work, index, seen.sent_s[w, r])
        return
    place = expert.n_run
    while place > 0 and work.records[running[place - 1]].first_token_s > record.first_token_s:
        running[place] = running[place - 1]
        place -= 1
    running[place] = index
    work.finish_at[expert.n_run] = 1
    expert.n_run += 1
    expert.n_dec += 1
    expert.taken += blocks
    expert.context += cached
    expert.phase[cached & (BLOCK_TOKENS - 1)] += 1


@kernel
def _copy_request(state, terms, seen, w, r, index):
    """Write a request that another gateway has sent as number ``index`` of the state."""
    request, record, extra = state.requests[0, index], state.records[0, index], state.extras[0, index]
    request.arrival_s = seen.sent_s[w, r]
    request.prompt = seen.prompt[w, r]
    request.predicted_tokens = seen.predicted_tokens[w, r]
    request.predicted_score = seen.predicted_score[w, r]
    request.output = NEVER
    record.preemptions = 0
    extra.service = min(max(seen.service[w, r], 0), terms.size - 1)
    extra.priority = terms[extra.service].priority
    extra.network_s = 0.0


@kernel
def _enter_all(state, terms, nominal, seen, me, rows, now_s):
    """Put the requests of all gateways in their places, in the order in which they were sent."""
    first, count = seen.expert.shape[1], 0  # the state's numbers of others' requests follow those of one's own
    sent_s = np.empty(state.requests.shape[1])
    source = np.empty((state.requests.shape[1], 3), np.int64)
    for w in range(seen.expert.shape[0]):
        for r in range(rows if w == me else min(seen.rows[w], first)):
            if not 0 <= seen.expert[w, r] < nominal.shape[1]:
                continue
            index = r if w == me else first + w * first + r
            if w != me:
                _copy_request(state, terms, seen, w, r, index)
            sent_s[count] = seen.sent_s[w, r]
            source[count] = w, r, index
            count += 1
    for i in np.argsort(sent_s[:count], kind="mergesort"):
        w, r, index = source[i]
        e = seen.expert[w, r]
        if 0 <= e < nominal.shape[1]:  # unless it has gone meanwhile
            _enter(nominal[0, e], state.experts[0, e], work_of(state, 0, e), seen, w, r, index, now_s)


@kernel
def rebuild(state, terms, nominal, seen, me, rows, now_s):
    """Rebuild the one cluster at ``now_s`` as gateway ``me`` sees it.

    The iteration under way is planned at each expert that has a request. It ends at ``now_s`` if it should have ended before:
    its tokens have not come yet.

    Args:
        state: of one cluster; it holds the gateway's own requests already, by row, and has room for those of the others.
        terms: (C,) TERMS of the service classes.
        nominal: (1, N) the engines' figures.
        seen: by all gateways.
        me: number of the gateway.
        rows: its rows to take into account, from the first.
        now_s: the time.
    """
    for e in range(nominal.shape[1]):
        _clear(nominal[0, e], state.experts[0, e])
    if seen.expert.shape[0] > 1:
        _enter_all(state, terms, nominal, seen, me, rows, now_s)
    else:
        for r in range(rows):
            e = seen.expert[me, r]
            if e >= 0:
                _enter(nominal[0, e], state.experts[0, e], work_of(state, 0, e), seen, me, r, r, now_s)
    for e in range(nominal.shape[1]):
        engine, expert = nominal[0, e], state.experts[0, e]
        if expert.n_run + expert.n_wait == 0:
            continue
        began_s, before_s = seen.began_s[:, e].max(), seen.before_s[:, e].max()
        expert.clock_s = began_s if expert.n_run > 0 else max(began_s, expert.clock_s)
        expert.known_s = expert.clock_s if expert.clock_s > began_s else before_s
        schedule(engine, expert, work_of(state, 0, e))
        if expert.plan_end_s < now_s:
            expert.clock_s += now_s - expert.plan_end_s
            expert.plan_end_s = now_s
