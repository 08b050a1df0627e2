"""Policies on the requests of a log, in the simulator: the log is cut into windows, and each policy meets the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gateway.proof.worlds import LoggedTable, episode_of
from rllib_envs.heuristic import Actions, RoutingPolicy
from rllib_envs.scenario import Scenario
from rllib_envs.simulation import Simulation
from tuning.metrics.statistics import Interval, mean_interval, paired_difference
from tuning.specs.routers import NamedRouter, build_router

LOGGED = "as logged"
"""Name of the policy that sends each request where the log says."""

_LEAST = 50  # requests of a window, if there are as many


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """One policy on the log."""

    name: str
    qos: tuple[float, ...]  # of each window
    mean: Interval
    difference: Interval  # to what was logged, paired by window
    violations: float  # share of the requests that finished late
    agreement: float  # share of the requests that it sends where the log says
    impossible: float  # share of the requests that it would send where they could not go then: they go where the log says


def windows_of(count: int, windows: int) -> list[slice]:
    """Cut ``count`` requests into at most so many windows of about the same size."""
    ends = np.linspace(0, count, min(windows, max(count // _LEAST, 1)) + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in pairwise(ends)]


def compare_on_log(
    table: LoggedTable, scenario: Scenario, routers: Sequence[NamedRouter], windows: Sequence[slice], seed: int
) -> list[Replayed]:
    """Run each policy, and what was logged, on the same windows.

    Args:
        table: the log.
        scenario: its cluster.
        routers: policies.
        windows: of the log; the cluster is empty as each begins.
        seed: of the lengths of answers that nobody saw, and of policies that draw.

    Raises:
        InputError: a policy that cannot be loaded.
    """
    runs = [(LOGGED, *_run(table, scenario, None, windows, seed))]
    runs += [(router.text, *_run(table, scenario, router, windows, seed)) for router in routers]
    base = runs[0][1]
    return [
        Replayed(
            name=name,
            qos=qos,
            mean=mean_interval(qos),
            difference=paired_difference(qos, base),
            violations=violations,
            agreement=agreement,
            impossible=impossible,
        )
        for name, qos, violations, agreement, impossible in runs
    ]


def _run(
    table: LoggedTable, scenario: Scenario, router: NamedRouter | None, windows: Sequence[slice], seed: int
) -> tuple[tuple[float, ...], float, float, float]:
    longest = max(window.stop - window.start for window in windows)
    policy: RoutingPolicy | None = None
    observation = replace(scenario.observation, whatif=False)
    if router is not None:
        policy, observation = build_router(router, scenario.observation)
    workload = replace(scenario.workload, requests=longest)
    simulation = Simulation(replace(scenario, observation=observation, workload=workload), len(windows), show=policy is not None)
    for i, window in enumerate(windows):
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0, i)))
        simulation.start_episode(i, episode_of(table, window, scenario, rng))
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(1,)))
    first = np.array([window.start for window in windows])
    agreed = impossible = 0
    while not simulation.over.all():
        rows = first + np.minimum(simulation.cursor, simulation.workload.total - 1)
        logged = table.expert[rows]
        if policy is None:
            actions: Actions = logged
        else:
            actions, held = _held(policy(simulation, rng), table.possible[rows], logged)
            impossible += int((held & ~simulation.over).sum())
        agreed += int(((actions == logged) & ~simulation.over).sum())
        simulation.step(actions)
    records = [simulation.records(i) for i in range(len(windows))]
    total = sum(x.qos.size for x in records)
    return (
        tuple(float(x.qos.mean()) for x in records),
        sum(int(x.late.sum()) for x in records) / total,
        agreed / total,
        impossible / total,
    )


def _held(actions: Actions, possible: NDArray[np.bool_], logged: Actions) -> tuple[Actions, NDArray[np.bool_]]:
    """Actions where a request could go, a drop included; else where it went. And where that was so."""
    n = possible.shape[1]
    allowed = np.column_stack([possible, np.ones(len(possible), np.bool_)])
    held = ~allowed[np.arange(len(actions)), np.minimum(actions, n)]
    return np.where(held, logged, actions).astype(np.int64), held
