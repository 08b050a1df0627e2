"""Copies of a simulated cluster as it is now, each with a future of its own: for roll-outs of what may come."""

from __future__ import annotations

from typing import Any

import numpy as np

from rllib_envs.sim.cluster import STEP, RequestTable
from rllib_envs.sim.state import EXTRA, RECORD, REQUEST
from rllib_envs.simulation import Simulation

_TABLE = tuple(name for name in RequestTable._fields if name != "total")
_OF_REQUESTS = {"requests", "records", "extras", "grown", "counted", *_TABLE}  # arrays (B, M, ...) of the world


def copy_cluster(source: Simulation, cluster: int, copies: Simulation) -> None:
    """Make each cluster of ``copies`` the same as one cluster of ``source``, up to the request that has just arrived.

    Later requests are not copied. Until ``append_requests`` adds some, the episode of a copy ends with that request. The same
    decisions and requests then give the same results, bit for bit.

    Args:
        source: where the cluster is.
        cluster: its number.
        copies: with the same experts and observation, and room for the requests; what it had before is lost.

    Raises:
        ValueError: the simulations differ, telemetry is delayed, the episode is over, or there is too little room.
    """
    _check(source, cluster, copies)
    arrived = int(source.cursor[cluster]) + 1
    for name, whole, copy in zip(source.world._fields, source.world, copies.world, strict=True):
        if name not in ("scratch", "late", "service", "at_site"):  # memory of one call; the state itself; the scenario's
            _copy(name, whole, copy, cluster, arrived)
    if source.meter is not None and copies.meter is not None:  # both or neither: the experts are the same
        copies.meter.energy_j[:] = source.meter.energy_j[cluster]
        copies.meter.billed[:] = source.meter.billed[cluster]
    copies.workload.total[:] = arrived
    copies.steps[:] = np.zeros((), STEP)


def _check(source: Simulation, cluster: int, copies: Simulation) -> None:
    for name in ("experts", "observation", "slo_s_per_token", "reward", "classes", "tenants", "network"):
        if getattr(source.scenario, name) != getattr(copies.scenario, name):
            raise ValueError(f"copies: {name} differs from that of the source")
    if source.living is not None or copies.living is not None:
        raise ValueError("experts change within the episode: such a cluster cannot be copied")
    if source.world.late is not source.state or copies.world.late is not copies.state:
        raise ValueError("telemetry is delayed: such a cluster cannot be copied")
    if source.over[cluster]:
        raise ValueError(f"cluster {cluster}: its episode is over")
    if source.cursor[cluster] >= copies.state.requests.shape[1]:
        raise ValueError(f"copies: room for {copies.state.requests.shape[1]} requests, {source.cursor[cluster] + 1} have arrived")


def _copy(name: str, whole: Any, copy: Any, cluster: int, arrived: int) -> None:
    """Copy an array, or each array of a tuple; of requests those that have arrived, and nothing in place of the others."""
    if whole is None:  # the extras of a plain scenario
        return
    if isinstance(whole, tuple):
        names: tuple[str, ...] = type(whole)._fields  # pyright: ignore[reportAttributeAccessIssue] (all tuples here are named)
        for part, a, b in zip(names, whole, copy, strict=True):
            _copy(part, a, b, cluster, arrived)
    elif name in _OF_REQUESTS and whole.ndim > 1:
        copy[:, :arrived] = whole[cluster, :arrived]
        copy[:, arrived:] = np.zeros((), copy.dtype)
    elif whole.size:  # a row that the scenario does not have is empty
        copy[:] = whole[cluster]


def append_requests(copies: Simulation, more: RequestTable) -> None:
    """Add requests to the episode of each copy, after those that it has.

    Args:
        copies: as ``copy_cluster`` left them.
        more: of cluster b the first ``total[b]``, later than those that have arrived.

    Raises:
        ValueError: too little room.
    """
    if (copies.workload.total + more.total).max() > copies.state.requests.shape[1]:
        raise ValueError(f"copies: room for {copies.state.requests.shape[1]} requests only")
    record = np.zeros((), RECORD)
    record["route"] = -1
    for name in ("first_scheduled_s", "first_token_s", "finish_s"):
        record[name] = np.nan
    for b, (first, count) in enumerate(zip(copies.workload.total.tolist(), more.total.tolist(), strict=True)):
        rows = slice(first, first + count)
        for name in _TABLE:
            getattr(copies.workload, name)[b, rows] = getattr(more, name)[b, :count]
        copies.state.records[b, rows] = record
        if copies.state.extras is not None:
            copies.state.extras[b, rows] = np.zeros((), EXTRA)
            copies.state.extras["service"][b, rows] = more.user["service"][b, :count]
        copies.state.requests[b, rows] = np.zeros((), REQUEST)
        for name in ("arrival_s", "prompt"):
            copies.state.requests[name][b, rows] = getattr(more, name)[b, :count]
    copies.workload.total[:] += more.total
