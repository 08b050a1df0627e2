"""The capacity of a cluster: named loads are fractions of it."""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rllib_envs.scenario import Arrivals, Scenario, Workload
from rllib_envs.sim.cluster import STEP, advance_to_next, allocate_request_table, begin, route
from rllib_envs.sim.jit import kernel
from rllib_envs.sim.state import allocate, clear, engine_records
from rllib_envs.sim.terms import plain_service
from rllib_envs.workload.arrival_process import ArrivalBatch
from rllib_envs.workload.arrivals import draw_arrivals
from rllib_envs.workload.catalogue import draw_requests
from rllib_envs.workload.replay import recorded

IN_TIME = 0.9
"""Share of the requests that must finish within the SLO for a rate to count as carried."""
_REPEATS, _REQUESTS = 4, 1000
_HALVINGS = 20  # of the logarithm of an interval that spans a million; sampling noise of several per cent remains
_SEED = 20_250_801


def capacity_rps(scenario: Scenario) -> float:
    """The scenario's ``capacity_rps``; if it is not given, the measured one (sum of ``expert_capacities``)."""
    if scenario.capacity_rps is not None:
        return scenario.capacity_rps
    return float(expert_capacities(scenario).sum())


def expert_capacities(scenario: Scenario) -> NDArray[np.float64]:
    """(N,) largest Poisson rate, requests/s, at which each expert, alone, finishes 90 % of its requests within the SLO.

    Found by bisection of an interval of rates, on fixed draws of the scenario's catalogue. If the arrival process has its own
    prompts and output lengths, these are used (for a trace, rows from its whole window). The sum over experts is the capacity of
    the cluster. It does not depend on a router, so loads of different clusters are comparable.

    Raises:
        InputError: the catalogue or the trace cannot be read.
    """
    arrivals = scenario.workload.arrivals
    workload = Workload(
        catalogue=scenario.workload.catalogue, arrivals=arrivals if arrivals.brings_prompts else Arrivals(), load=1.0
    )
    # Fields without influence on the figure are left out, so that scenarios which differ only in them share one measurement.
    told = arrivals.trace is not None and arrivals.trace.class_column is not None
    return _measure(
        Scenario(
            name="capacity",
            experts=scenario.experts,
            slo_s_per_token=scenario.slo_s_per_token,
            workload=workload,
            classes=scenario.classes if told else (),
        )
    )


@lru_cache(maxsize=64)
def _measure(scenario: Scenario) -> NDArray[np.float64]:
    n = scenario.n_experts
    rng = np.random.default_rng(_SEED)
    owner = np.repeat(np.arange(n), _REPEATS)  # cluster b consists of expert owner[b] alone
    engines = engine_records([expert.engine for expert in scenario.experts])
    state = allocate(engines[owner][:, None].copy(), _REQUESTS, plain=True)
    workload = allocate_request_table(owner.size, _REQUESTS, 1)
    workload.total[:] = _REQUESTS
    for repeat in range(_REPEATS):
        brought = _brought(scenario.workload.arrivals, rng)
        requests = draw_requests(scenario, _REQUESTS, rng, brought.prompt_tokens, brought.lengths)
        mine = slice(repeat, None, _REPEATS)
        workload.prompt[mine] = requests.prompt_tokens
        workload.output[mine, :, 0] = requests.output_tokens.T
    unit_gaps = np.tile(rng.exponential(size=(_REPEATS, _REQUESTS)), (n, 1))
    service = plain_service(scenario.slo_s_per_token, 1)
    low, high = np.full(n, 1e-3), np.full(n, 1e3)
    late = np.zeros(owner.size)
    for _ in range(_HALVINGS):
        rate = np.sqrt(low * high)
        workload.arrival_s[:] = np.cumsum(unit_gaps / rate[owner][:, None], axis=1)
        for cluster in range(owner.size):
            clear(state, cluster)
        _run_alone(state, workload, service, np.zeros(1, STEP), late)
        carried = late.reshape(n, _REPEATS).mean(axis=1) <= 1 - IN_TIME
        low, high = np.where(carried, rate, low), np.where(carried, high, rate)
    return low


def _brought(arrivals: Arrivals, rng: np.random.Generator) -> ArrivalBatch:
    """Prompts and lengths from the arrival process for that many requests, drawn together from all of its rows."""
    batch = recorded(arrivals) if arrivals.kind == "trace" else draw_arrivals(arrivals, 1.0, _REQUESTS, rng)
    prompt, lengths = batch.prompt_tokens, batch.lengths
    if prompt is None and lengths is None:
        return batch
    rows = rng.integers(0, batch.arrival_s.size, _REQUESTS)
    return replace(
        batch,
        prompt_tokens=None if prompt is None else prompt[rows],
        lengths=None if lengths is None else lengths.at(rows),
    )


@kernel
def _run_alone(state, workload, service, step, late):
    """Send every request of each one-expert cluster to its expert; returns the share that was late or rejected, (B,).

    Prompts that the expert can never hold do not count, since they fail at any rate.
    """
    cursor = np.zeros(late.size, np.int32)
    now_s = np.zeros(late.size)
    for b in range(late.size):
        begin(state, workload, cursor, now_s, b)
        missed, possible = 0, 0
        for r in range(workload.total[b]):
            route(state, workload, service, b, r, 0, now_s[b], 0.0, step[0])
            advance_to_next(state, workload, cursor, now_s, b, step[0])
            missed += step[0].late
            if workload.prompt[b, r] < state.engines[b, 0].max_model_len:
                missed += step[0].rejected
                possible += 1
        late[b] = missed / max(possible, 1)
