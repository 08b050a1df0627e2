"""One-step policy improvement: compare actions by roll-outs of sampled futures, each followed by the base policy.

All actions meet the same futures (common random numbers). An action takes the place of the base policy's if its mean QoS over the
futures is above that one's by a number of standard errors of the paired difference. Futures come in batches, and more are drawn
only as long as the answer is open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rllib_envs.baselines import impact_value
from rllib_envs.heuristic import available
from rllib_envs.scenario import Scenario, with_workload
from rllib_envs.simulation import Simulation
from tuning.headroom.futures import Futures
from tuning.many_worlds.tuned import BASELINE, Point
from tuning.specs.grammar import format_spec
from tuning.specs.routers import build_router, parse_router

_HOPELESS_ERRORS = 1.0  # an action is given up when it is this many standard errors below the base policy's


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How actions are compared."""

    actions: int = 3  # compared at most, those of greatest base value
    gap: float = 0.1  # only actions whose base value is at most so much below the best
    copies: int = 128  # clusters simulated at once: actions times futures
    batches: int = 4  # of futures at most
    horizon: int = 100  # requests that arrive in a future
    errors: float = 2.0  # standard errors by which an action must be ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutChoice:
    """What roll-outs chose at one decision."""

    base: int  # action of the base policy
    action: int
    futures: int  # drawn for the choice
    advantage: float  # mean QoS of the action less that of ``base``, over further futures; 0 where they are the same
    error: float  # standard error of it


class Improver:
    """Chooses actions at decisions of a cluster. The base policy is impact-greedy with given parameters."""

    def __init__(self, scenario: Scenario, parameters: Point, search: Search, capacity_rps: float, seed: int) -> None:
        """Set up the copies.

        Args:
            scenario: the world, as ``base_world`` gives it.
            parameters: of the base policy.
            search: how actions are compared.
            capacity_rps: of the fleet.
            seed: of the law that futures are drawn from.

        Raises:
            InputError: a world whose futures are not known.
        """
        self._decide, _ = build_router(parse_router(format_spec(BASELINE, parameters)), scenario.observation)
        self._parameters = {name: parameters[name] for name in ("price", "shrink")}
        self._search = search
        self._futures = Futures(scenario, capacity_rps, seed, horizon=search.horizon)
        assert isinstance(scenario.workload.requests, int)
        self._copies = Simulation(with_workload(scenario, requests=scenario.workload.requests + search.horizon), search.copies)
        self._unused = np.random.default_rng(0)  # impact-greedy draws nothing

    def base(self, simulation: Simulation) -> NDArray[np.int64]:
        """(B,) actions of the base policy."""
        return self._decide(simulation, self._unused)

    def candidates(self, simulation: Simulation, cluster: int) -> list[int]:
        """The base policy's action, and the others that are worth a comparison, best first."""
        value = impact_value(simulation, **self._parameters)[cluster]
        value = np.append(np.where(available(simulation.view)[cluster], value, -np.inf), 0.0)  # a drop is worth 0
        base = int(self.base(simulation)[cluster])
        close = [int(a) for a in np.argsort(-value, kind="stable") if value[a] >= value[base] - self._search.gap and a != base]
        return [base, *close[: self._search.actions - 1]]

    def choose(self, simulation: Simulation, cluster: int, candidates: Sequence[int], rng: np.random.Generator) -> RolloutChoice:
        """Compare actions for the arrived request of a cluster; the first is the base policy's."""
        left, difference, futures = list(candidates), np.zeros((0, len(candidates) - 1)), 0
        best = left[0]
        for _ in range(self._search.batches):
            qos = self.qos(simulation, cluster, left, rng)
            futures += len(qos)
            difference = np.concatenate([difference, qos[:, 1:] - qos[:, :1]])
            mean, error = difference.mean(axis=0), _error(difference)
            first = int(mean.argmax())
            if mean[first] > self._search.errors * error[first]:
                best = left[1 + first]
                break
            open_ = mean > -_HOPELESS_ERRORS * error
            if not open_.any():
                break
            difference = difference[:, open_]
            left = [left[0], *[action for action, on in zip(left[1:], open_, strict=True) if on]]
        if best == candidates[0]:
            return RolloutChoice(base=best, action=best, futures=futures, advantage=0.0, error=0.0)
        fresh = self.qos(simulation, cluster, [candidates[0], best], rng)
        ahead = fresh[:, 1:] - fresh[:, :1]
        return RolloutChoice(
            base=candidates[0], action=best, futures=futures, advantage=float(ahead.mean()), error=float(_error(ahead)[0])
        )

    def qos(self, simulation: Simulation, cluster: int, actions: Sequence[int], rng: np.random.Generator) -> NDArray[np.float64]:
        """(F, A) QoS of all requests in flight, arrived and to come, by future and action; as many futures as copies allow."""
        copies, count = self._copies, len(actions)
        futures = self._search.copies // count
        number = np.minimum(np.arange(copies.batch) // count, futures - 1)  # copies that are left over repeat the last future
        self._futures.spread(simulation, cluster, copies, number, rng)
        before = float(copies.state.experts["qos"][0].sum())
        copies.step(np.resize(np.asarray(actions, np.int64), copies.batch))
        while not copies.over.all():
            copies.step(self.base(copies))
        qos = copies.state.experts["qos"].sum(axis=1) - before
        return qos[: futures * count].reshape(futures, count)


def _error(differences: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard errors of the means over futures."""
    return differences.std(axis=0, ddof=1) / math.sqrt(len(differences))


def base_world(scenario: Scenario, parameters: Point) -> Scenario:
    """The scenario with the observation that the base policy needs, and no more of it than must be."""
    _, observation = build_router(parse_router(format_spec(BASELINE, parameters)), scenario.observation)
    return replace(scenario, observation=replace(observation, running_slots=1, waiting_slots=1))
