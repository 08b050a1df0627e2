"""Policies on the requests of a log, in the simulator: all meet the same ones, and windows of them give intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from rllib_envs.decision_log.promises import with_promises
from rllib_envs.decision_log.table import LoggedTable, episode_of
from rllib_envs.heuristic import RoutingPolicy
from rllib_envs.scenario import Scenario
from rllib_envs.simulation import Simulation
from tuning.metrics.statistics import Interval, mean_interval, paired_difference
from tuning.specs.routers import NamedRouter, build_router

LOGGED = "as logged"
"""Name of the policy that sends each request where the log says."""

LEAST_WINDOW = 50
"""Requests of a window, if there are as many."""


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
    ends = np.linspace(0, count, min(windows, max(count // LEAST_WINDOW, 1)) + 1).astype(int)
    return [slice(int(a), int(b)) for a, b in pairwise(ends)]


def compare_on_log(
    table: LoggedTable, scenario: Scenario, routers: Sequence[NamedRouter], windows: Sequence[slice], seed: int, draws: int = 1
) -> list[PolicyOnLog]:
    """Run each policy, and what was logged, on the same requests.

    Args:
        table: the log.
        scenario: its cluster.
        routers: policies.
        windows: of consecutive requests, whose means the intervals come from.
        seed: of the lengths of answers that nobody saw, and of policies that draw.
        draws: how often those lengths are drawn; a window's QoS is the mean over them.

    Raises:
        InputError: a policy that cannot be loaded.
    """
    promised = with_promises(scenario, table.requests, table.service)
    table, scenario = replace(table, service=promised.service), promised.scenario
    runs = [(LOGGED, *_run(table, scenario, None, windows, seed, draws))]
    runs += [(router.text, *_run(table, scenario, router, windows, seed, draws)) for router in routers]
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
    table: LoggedTable, scenario: Scenario, router: NamedRouter | None, windows: Sequence[slice], seed: int, draws: int
) -> tuple[tuple[float, ...], float, float, float]:
    count = len(table.requests)
    policy: RoutingPolicy | None = None
    observation = replace(scenario.observation, whatif=False)
    if router is not None:
        policy, observation = build_router(router, scenario.observation)
    workload = replace(scenario.workload, requests=count)
    simulation = Simulation(replace(scenario, observation=observation, workload=workload), draws, show=policy is not None)
    rng = _generator(seed, 1)
    for b in range(draws):
        simulation.start_episode(b, episode_of(table, scenario, _generator(seed, 0, *([b] if b else []))))
    agreed = impossible = 0
    for row in range(count):  # one decision for each request, in all clusters alike
        logged = np.full(draws, table.expert[row])
        action = logged
        if policy is not None:
            action = policy(simulation, rng)
            barred = (action < scenario.n_experts) & ~table.possible[row, np.minimum(action, scenario.n_experts - 1)]
            action = np.where(barred, logged, action)
            impossible += int(barred.sum())
        agreed += int((action == logged).sum())
        simulation.step(action)
    records = [simulation.records(b) for b in range(draws)]
    return (
        tuple(float(np.mean([x.qos[window].mean() for x in records])) for window in windows),
        float(np.mean([x.late.mean() for x in records])),
        agreed / count / draws,
        impossible / count / draws,
    )


def _generator(seed: int, *key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
