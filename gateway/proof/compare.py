"""Policies on the requests of a log, in the simulator: all meet the same ones, and windows of them give intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from gateway.proof.worlds import LoggedTable, episode_of
from rllib_envs.heuristic import RoutingPolicy
from rllib_envs.scenario import Scenario
from rllib_envs.simulation import Simulation
from tuning.metrics.statistics import Interval, mean_interval, paired_difference
from tuning.specs.routers import NamedRouter, build_router

LOGGED = "as logged"
"""Name of the policy that sends each request where the log says."""

_LEAST = 50  # requests of a window, if there are as many


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOnLog:
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
) -> list[PolicyOnLog]:
    """Run each policy, and what was logged, on the same requests.

    Args:
        table: the log.
        scenario: its cluster.
        routers: policies.
        windows: of consecutive requests, whose means the intervals come from.
        seed: of the lengths of answers that nobody saw, and of policies that draw.

    Raises:
        InputError: a policy that cannot be loaded.
    """
    runs = [(LOGGED, *_run(table, scenario, None, windows, seed))]
    runs += [(router.text, *_run(table, scenario, router, windows, seed)) for router in routers]
    base = runs[0][1]
    return [
        PolicyOnLog(
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
    count = len(table.requests)
    policy: RoutingPolicy | None = None
    observation = replace(scenario.observation, whatif=False)
    if router is not None:
        policy, observation = build_router(router, scenario.observation)
    workload = replace(scenario.workload, requests=count)
    simulation = Simulation(replace(scenario, observation=observation, workload=workload), 1, show=policy is not None)
    lengths, draws = (np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(i,))) for i in range(2))
    simulation.start_episode(0, episode_of(table, scenario, lengths))
    agreed = impossible = 0
    while not simulation.over.all():
        row = int(simulation.cursor[0])
        action = logged = int(table.expert[row])
        if policy is not None:
            action = int(policy(simulation, draws)[0])
            if action < scenario.n_experts and not table.possible[row, action]:
                action = logged
                impossible += 1
        agreed += action == logged
        simulation.step(np.array([action]))
    records = simulation.records(0)
    return (
        tuple(float(records.qos[window].mean()) for window in windows),
        float(records.late.mean()),
        agreed / count,
        impossible / count,
    )
