"""The state of a cluster as somebody in front of the engines sees it: what was sent, and the tokens that came back.

Nobody there sees an engine's queue. A request without a token waits, in the order in which it was sent; one with tokens runs, in
the order of its first token. When an iteration ends its tokens come, so the last of them say when the iteration under way began.
``rebuild`` composes that iteration by the engine's own rules, which also says whose prompts it computes. How far a prompt is that
takes several iterations is not known: it is taken to begin now. Nor is it known who was preempted.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.jit import kernel
from rllib_envs.sim.kernels import blocks_of, push, schedule, work_of
from rllib_envs.sim.profile import BLOCK_TOKENS

NOWHERE = -1
"""In place of an expert: the request is not under way."""


class Seen(NamedTuple):
    """What is seen of requests under way, by row, and of N experts. M rows at most."""

    expert: NDArray[np.int32]  # (M,) NOWHERE: not under way
    tokens: NDArray[np.int32]  # (M,) streamed so far
    sent_s: NDArray[np.float64]  # (M,) time of the decision
    first_s: NDArray[np.float64]  # (M,) time of the first token, NaN before; where tokens are not seen, its prediction
    pace_s: NDArray[np.float64]  # (M,) predicted time per token where tokens are not seen until the end; else 0
    began_s: NDArray[np.float64]  # (N,) when the iteration under way began: at the last token, or when a request came to nobody
    before_s: NDArray[np.float64]  # (N,) the same of the iteration before it


@kernel
def _tokens_by(seen, r, now_s):
    """Tokens of the request in row r by now: those seen, or as many as it should have where they are not seen."""
    if seen.pace_s[r] == 0.0:
        return seen.tokens[r]
    if not now_s >= seen.first_s[r]:
        return np.int32(0)
    return np.int32(1 + min((now_s - seen.first_s[r]) / seen.pace_s[r], 1e9))


@kernel
def _clear(engine, expert):
    expert.clock_s = -np.inf
    expert.plan_steps = 0
    expert.n_run = expert.n_dec = expert.n_wait = expert.wait_head = 0
    expert.partial = expert.pre_done = expert.pre_chunk = 0
    expert.iteration = 0
    expert.min_finish = 1
    expert.context = expert.cached = 0
    expert.freed = engine.blocks
    expert.taken = 0
    expert.leaving = expert.leaving_blocks = 0
    expert.idle = 0
    for i in range(BLOCK_TOKENS):
        expert.phase[i] = 0


@kernel
def _enter(engine, expert, work, seen, r, now_s):
    """Put the request of row r where it is taken to be: among the running ones, or into the queue."""
    request, record = work.requests[r], work.records[r]
    tokens = min(_tokens_by(seen, r, now_s), engine.max_model_len - request.prompt - 1)
    if seen.pace_s[r] > 0.0:  # it would have been told of the end
        tokens = min(tokens, max(np.int32(request.predicted_tokens * engine.length_factor) - 1, 1))
    request.generated = max(tokens, 0)
    request.start = -request.generated
    record.first_scheduled_s = np.nan
    record.first_token_s = seen.first_s[r] if request.generated > 0 else np.nan
    cached = request.prompt + request.generated - 1
    blocks = blocks_of(cached)
    if request.generated == 0 or expert.n_run == engine.max_seqs or blocks > expert.freed - expert.taken:
        push(engine, expert, work, r, seen.sent_s[r])
        return
    place = expert.n_run
    while place > 0 and seen.first_s[work.running[place - 1]] > seen.first_s[r]:
        work.running[place] = work.running[place - 1]
        place -= 1
    work.running[place] = r
    work.finish_at[expert.n_run] = 1
    expert.n_run += 1
    expert.n_dec += 1
    expert.taken += blocks
    expert.context += cached
    expert.phase[cached & (BLOCK_TOKENS - 1)] += 1


@kernel
def rebuild(state, nominal, seen, rows, b, now_s):
    """Rebuild cluster b at ``now_s`` from the first ``rows`` rows of what is seen, whose requests the state holds already.

    ``nominal`` (B, N) has the engines' figures. The iteration under way is planned at each expert that has a request, and ends
    at ``now_s`` if it should have ended before: its tokens have not come yet.
    """
    n_experts = nominal.shape[1]
    for e in range(n_experts):
        _clear(nominal[b, e], state.experts[b, e])
    for r in range(rows):
        e = seen.expert[r]
        if e >= 0:
            _enter(nominal[b, e], state.experts[b, e], work_of(state, b, e), seen, r, now_s)
    for e in range(n_experts):
        engine, expert = nominal[b, e], state.experts[b, e]
        if expert.n_run + expert.n_wait == 0:
            continue
        expert.clock_s = max(seen.began_s[e], expert.clock_s) if expert.n_run == 0 else seen.began_s[e]
        expert.known_s = expert.clock_s if expert.clock_s > seen.began_s[e] else seen.before_s[e]
        schedule(engine, expert, work_of(state, b, e))
        if expert.plan_end_s < now_s:
            expert.clock_s += now_s - expert.plan_end_s
            expert.plan_end_s = now_s
