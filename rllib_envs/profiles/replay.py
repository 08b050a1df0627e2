"""Serve one list of requests by many engines at once, compiled: the forward model of a fit."""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.cluster import STEP, advance_to_next, allocate_request_table, begin, route
from rllib_envs.sim.jit import kernel
from rllib_envs.sim.profile import EngineProfile
from rllib_envs.sim.state import allocate, engine_records
from rllib_envs.sim.terms import NO_BOUND_S, plain_service

Floats = NDArray[np.float64]


class Replayed(NamedTuple):
    """Times of each request at each of K engines, (K, R) in s; NaN where the engine rejects the request."""

    first_token_s: Floats
    finish_s: Floats


def replay_requests(
    profiles: Sequence[EngineProfile],
    arrival_s: Floats,
    prompt_tokens: NDArray[np.int64],
    output_tokens: NDArray[np.int64],
) -> Replayed:
    """Serve the same requests by each engine alone, as ``rllib_envs.sim.reference.simulate`` does.

    Args:
        profiles: the K engines.
        arrival_s: (R,), ascending; R >= 1. So are the next two.
        prompt_tokens: each >= 1.
        output_tokens: each >= 1.
    """
    clusters, requests = len(profiles), arrival_s.size
    state = allocate(engine_records(profiles)[:, None].copy(), requests, plain=True)
    table = allocate_request_table(clusters, requests, 1)
    table.total[:] = requests
    table.arrival_s[:] = arrival_s
    table.prompt[:] = prompt_tokens
    table.output[..., 0] = output_tokens
    _serve(state, table, plain_service(NO_BOUND_S, 1), np.zeros(clusters, np.int32), np.zeros(clusters), np.zeros(1, STEP))
    return Replayed(state.records["first_token_s"].copy(), state.records["finish_s"].copy())


@kernel
def _serve(state, table, service, cursor, now_s, step):
    for b in range(now_s.size):
        begin(state, table, cursor, now_s, b)
        for r in range(table.total[b]):
            route(state, table, service, b, r, 0, now_s[b], 0.0, step[0])
            advance_to_next(state, table, cursor, now_s, b, step[0])
