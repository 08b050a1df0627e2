"""What is hidden of requests in flight: how far each has come, and other truths in place of its own."""

# pyright: reportAttributeAccessIssue=false, reportUnknownParameterType=false, reportMissingParameterType=false
# ruff: noqa: ANN001, ANN201 (numba infers the types)
from __future__ import annotations

import numpy as np

from rllib_envs.sim.jit import kernel
from rllib_envs.sim.plan import cut_at, steps_begun
from rllib_envs.sim.state import NEVER
from rllib_envs.sim.terms import class_of, extras_of, network_s, promise


@kernel
def tell_generated(state, b, time_s, generated):
    """Fill ``generated`` (M,) with the tokens that each request in flight of cluster b has at ``time_s``; -1 for the others."""
    generated[:] = -1
    for e in range(state.experts.shape[1]):
        expert, waiting = state.experts[b, e], state.waiting[b, e]
        iteration = expert.iteration + max(steps_begun(expert, time_s) - 1, 0)
        for i in range(expert.n_run):
            index = state.running[b, e, i]
            request = state.requests[b, index]
            generated[index] = iteration - request.start if i < expert.n_dec else request.generated
        for i in range(expert.n_wait):
            index = waiting[(expert.wait_head + i) & (waiting.size - 1)]
            generated[index] = state.requests[b, index].generated


@kernel
def replace_truth(state, workload, service, time_s, output, score):
    """Give every request in flight another length and score, in each cluster at ``time_s``.

    Args:
        state: advanced to ``time_s``. Plans that reach beyond the iteration under way end with it: they knew the true lengths.
        workload: their requests.
        service: what they are promised.
        time_s: now.
        output: (B, M) tokens, more than each has generated; cut at what max_model_len leaves.
        score: (B, M).
    """
    for b in range(state.experts.shape[0]):
        for e in range(state.experts.shape[1]):
            expert, longest = state.experts[b, e], state.engines[b, e].max_model_len
            waiting = state.waiting[b, e]
            cut_at(expert, time_s)
            expert.min_finish = NEVER
            for i in range(expert.n_run + expert.n_wait):
                if i < expert.n_run:
                    index = state.running[b, e, i]
                else:
                    index = waiting[(expert.wait_head + i - expert.n_run) & (waiting.size - 1)]
                request = state.requests[b, index]
                request.output = min(output[b, index], longest - request.prompt)
                record = state.records[b, index]
                record.score = score[b, index]
                user, extras = workload.user[b, index], extras_of(state.extras, b)
                away_s = network_s(extras, service, user.site, e, request.prompt, user.jitter)
                promise(record, extras, index, service.terms[class_of(extras, index)], request.output, away_s)
                if i < expert.n_dec:
                    state.finish_at[b, e, i] = request.start + request.output
                    expert.min_finish = min(expert.min_finish, np.int64(state.finish_at[b, e, i]))
