"""What late requests need of a cluster, and what it can give: expert time, a measure in which every resource counts.

An expert that is full of requests like one, with ``p`` prompt tokens and ``d`` output tokens, decodes a batch of ::

    B = min(time, memory, seats) = min((FULL * L - c0) / s, KV tokens / (p + d/2), max_num_seqs), at least 1
    s = b + c * (p + d/2) + a * p / d

with iterations of ``c0 + B * s``. So each request takes the expert ``d * (c0 / B + s)`` of its time, whichever resource is the
scarce one. A cluster's time for a request is that with which all its experts together finish one after the other:
``1 / sum_e(1 / time_e)``.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.jit import kernel
from rllib_envs.sim.profile import BLOCK_TOKENS

FULL = 0.9
"""Share of the SLO that an iteration of a full expert takes: beyond it, nobody who waits at all is in time."""

DEMAND_GAINS = (0.005, 0.05)
"""Gains of the moving averages of cluster time, slow and fast."""

MOST_LOG_LOAD = 2.5
"""Most that the log of an offered load counts as in ``overload``."""

_SLOW, _FAST = 0, 1
_OVERLOAD_GAIN = 0.01  # a flood of a second passes, an overload of some hundred requests shows
_LATE_GAIN = 0.02  # for each request that finishes
_LEAST_S = 1e-9

DEMAND = np.dtype(
    [
        ("cluster_s", "f8", (2,)),  # moving averages of the cluster's time for a request, slow and fast
        ("log_load", "f8", (2,)),
        ("log_expert_time", "f8"),
        ("overload", "f8"),
        ("late", "f8"),
        ("foreseen", "f8"),
    ],
    align=True,
)  # fmt: skip


class Demand(NamedTuple):
    """What late requests need of B clusters."""

    records: NDArray[np.void]  # (B,) DEMAND


def allocate_demand(batch: int) -> Demand:
    """Allocate the records of B clusters."""
    return Demand(records=np.zeros(batch, DEMAND))


def reset_demand(demand: Demand, cluster: int) -> None:
    """Forget what one cluster has seen."""
    demand.records[cluster] = np.zeros((), DEMAND)


@kernel
def expert_time_s(engine, prompt, tokens, slo_s):
    """The time that a request takes of an expert, seconds (see the module)."""
    held = prompt + 0.5 * tokens
    own_s = engine.b_s + engine.c_s * held + engine.a_s * prompt / tokens
    batch = min((FULL * slo_s - engine.c0_s) / max(own_s, _LEAST_S), engine.blocks * BLOCK_TOKENS / held, engine.max_seqs)
    return tokens * (engine.c0_s / max(batch, 1.0) + own_s)


@kernel
def update_demand(demand, nominal, workload, b, r, gaps_s, slo_s):
    """Count request r of cluster b, once; ``gaps_s`` (2,): moving averages of the gaps between arrivals.

    The first requests have more weight than the gains give. Nothing changes when the same first request is counted again.
    """
    record = demand.records[b]
    rate = 0.0
    n_experts = nominal.shape[1]
    for e in range(n_experts):
        engine = nominal[b, e]
        tokens = max(workload.predicted_tokens[b, r, e] * engine.length_factor, 1.0)
        rate += 1.0 / expert_time_s(engine, workload.prompt[b, r], tokens, slo_s)
    for i in range(len(DEMAND_GAINS)):
        record.cluster_s[i] += max(DEMAND_GAINS[i], 1.0 / (r + 1)) * (1.0 / rate - record.cluster_s[i])
        record.log_load[i] = math.log(record.cluster_s[i] / max(gaps_s[i], _LEAST_S))
    record.log_expert_time = math.log(record.cluster_s[_SLOW] * n_experts / slo_s)
    if r > 0:
        record.overload += _OVERLOAD_GAIN * (min(max(record.log_load[_FAST], 0.0), MOST_LOG_LOAD) - record.overload)


@kernel
def update_late_ema(demand, b, finished, late):
    """Count requests of cluster b that have finished, and how many of them late."""
    if finished > 0:
        record = demand.records[b]
        record.late += (1.0 - (1.0 - _LATE_GAIN) ** finished) * (late / finished - record.late)


@kernel
def update_foreseen_ema(demand, b, own_success):
    """Count a request of cluster b that is sent to an expert, with the predicted probability that it is in time there."""
    record = demand.records[b]
    record.foreseen += _LATE_GAIN * (1.0 - own_success - record.foreseen)


@kernel
def write_demand(demand, errors, b, row):
    """Write the DEMAND_ROW of cluster b; ``errors`` (B, N): what calibration has seen of predicted lengths (ERRORS)."""
    record = demand.records[b]
    row.log_expert_time = record.log_expert_time
    row.log_load_long_run = record.log_load[_SLOW]
    row.log_load_recent = record.log_load[_FAST]
    row.overload = record.overload
    row.late = record.late
    row.foreseen = record.foreseen
    row.length_error = _length_error(errors[b])


@kernel
def _length_error(errors):
    """Root mean square of log(actual / predicted tokens) over the finished answers of all experts; 0 where there are none."""
    square, samples = 0.0, 0
    for e in range(errors.size):
        square += errors[e].samples * errors[e].square
        samples += errors[e].samples
    return math.sqrt(square / max(samples, 1))
