"""Drive the compiled engine through lists of arrivals, as the reference stepper takes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from rllib_envs.sim.cluster import STEP, advance_to_next, allocate_request_table, begin, route
from rllib_envs.sim.profile import EngineProfile
from rllib_envs.sim.reference import Arrival
from rllib_envs.sim.state import State, allocate, engine_records
from rllib_envs.sim.terms import Service, per_token_terms

SLO_S = 0.05
PRIORITIES = (0, 1, 7)


def compiled_run(profile: EngineProfile, arrivals: Sequence[Arrival], slo_s: float = SLO_S, *, plain: bool = False) -> State:
    """The drained state of one cluster with one expert after all arrivals; ``plain``: by the kernels without optional parts."""
    state = allocate(engine_records([profile])[None].copy(), len(arrivals), plain=plain)
    workload = allocate_request_table(1, len(arrivals), 1)
    workload.total[0] = len(arrivals)
    workload.arrival_s[0] = [a.arrival_s for a in arrivals]
    workload.prompt[0] = [a.prompt_tokens for a in arrivals]
    workload.output[0, :, 0] = [a.output_tokens for a in arrivals]
    workload.score[:] = 1
    priorities, workload.user["service"][0] = np.unique([a.priority for a in arrivals], return_inverse=True)  # one class each
    terms = np.repeat(per_token_terms(slo_s), priorities.size)
    terms["priority"] = priorities
    service = Service(terms, np.ones((priorities.size, 1, 1), np.bool_), np.zeros((1, 1)), np.zeros((1, 1)))
    cursor, now_s, step = np.zeros(1, np.int32), np.zeros(1), np.zeros(1, STEP)
    begin(state, workload, cursor, now_s, 0)
    for r in range(len(arrivals)):
        route(state, workload, service, 0, r, 0, now_s[0], 0.0, step[0])
        advance_to_next(state, workload, cursor, now_s, 0, step[0])
    return state


@st.composite
def profiles(draw: st.DrawFn) -> EngineProfile:
    """Small engines under every kind of pressure: few blocks, few seats, small budgets, short queues."""
    seats = draw(st.integers(1, 12))
    length = draw(st.integers(2, 200))
    return EngineProfile(
        c0_ms=draw(st.floats(0.5, 40)),
        b_ms=draw(st.floats(0, 2)),
        c_ms=draw(st.sampled_from([0.0, 1e-4, 0.013])),
        a_ms=draw(st.floats(0, 0.5)),
        n0_tokens=draw(st.integers(0, 64)),
        q_ms=draw(st.floats(0, 1e-3)),
        c_mixed_ms=draw(st.sampled_from([0.0, 0.02])),
        c0_mixed_ms=draw(st.sampled_from([0.0, 3.7])),
        kv_tokens=(length + 15) // 16 * 16 + 16 + 16 * draw(st.integers(0, 20)),
        kv_bytes_per_token=1,
        max_num_seqs=seats,
        max_num_batched_tokens=draw(st.integers(seats, 150)),
        max_model_len=length,
        max_waiting=draw(st.sampled_from([1, 3, 40])),
        reuse_preempted_blocks=draw(st.booleans()),
        async_scheduling=draw(st.booleans()),
        handoff_s=draw(st.sampled_from([0.0, 0.0, 0.0113717, 0.217389])),
        scheduling=draw(st.sampled_from(["fcfs", "priority"])),
    )


@st.composite
def arrival_lists(draw: st.DrawFn, length: int) -> list[Arrival]:
    """Up to 40 arrivals, in clumps and with pauses, for ``max_model_len = length``; times never meet a step's end."""
    gaps = draw(st.lists(st.sampled_from([0.0, 0.0013717, 0.017389, 0.0913717, 0.71371]), min_size=1, max_size=40))
    times = np.cumsum(np.array(gaps) * np.sqrt(2))
    return [
        Arrival(
            arrival_s=float(t),
            prompt_tokens=draw(st.integers(1, length)),
            output_tokens=draw(st.integers(1, length)),
            priority=draw(st.sampled_from(PRIORITIES)),
        )
        for t in times
    ]


@st.composite
def runs(draw: st.DrawFn) -> tuple[EngineProfile, list[Arrival]]:
    """An engine and what comes to it."""
    profile = draw(profiles())
    return profile, draw(arrival_lists(profile.max_model_len))
