"""Episodes by the base policy, and the same episodes with its decisions improved by roll-outs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rllib_envs.capacity import capacity_rps
from rllib_envs.scenario import Scenario
from rllib_envs.simulation import Simulation
from tuning.headroom.rollout import Improver, Search, base_world
from tuning.many_worlds.tuned import Point
from tuning.metrics.episode import mean_qos

_STREAM = 63  # keeps the futures apart from all other draws with an episode's seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Improved:
    """One episode, by either policy."""

    base: float  # QoS per arrived request
    improved: float
    decisions: int
    compared: int  # decisions at which more than one action was simulated
    changed: int  # of them, those at which roll-outs chose another action
    gain: float  # sum over the changed ones of the action's advantage over further futures, per request of the episode
    gain_error: float  # its standard error
    futures: int  # drawn in all


def improve(scenario: Scenario, parameters: Point, search: Search, seeds: Sequence[int], *, every: int) -> list[Improved]:
    """Run each episode by the base policy, and once more with roll-outs.

    Args:
        scenario: the world.
        parameters: of the base policy, calibrated impact-greedy.
        search: how actions are compared.
        seeds: of the episodes.
        every: roll-outs decide at each decision whose number is a multiple of it, the base policy at the others.

    Raises:
        InputError: a world whose futures are not known.
    """
    world = base_world(scenario, parameters)
    rate_rps = capacity_rps(world)
    found = list[Improved]()
    for seed in seeds:
        improver = Improver(world, parameters, search, rate_rps, seed)
        base, simulation = Simulation(world, 1), Simulation(world, 1)
        for each in (base, simulation):
            each.start(0, seed)
        while not base.over.all():
            base.step(improver.base(base))
        found.append(_improve(improver, simulation, seed, every, mean_qos(base.records(0))))
    return found


def _improve(improver: Improver, simulation: Simulation, seed: int, every: int, base: float) -> Improved:
    decisions = compared = changed = futures = 0
    advantages, errors = list[float](), list[float]()
    while not simulation.over.all():
        r = int(simulation.cursor[0])
        action = int(improver.base(simulation)[0])
        candidates = improver.candidates(simulation, 0) if r % every == 0 else [action]
        if len(candidates) > 1:
            rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM, r)))
            choice = improver.choose(simulation, 0, candidates, rng)
            compared += 1
            futures += choice.futures
            if choice.action != choice.base:
                action = choice.action
                changed += 1
                advantages.append(choice.advantage)
                errors.append(choice.error)
        decisions += 1
        simulation.step(np.array([action]))
    return Improved(
        base=base,
        improved=mean_qos(simulation.records(0)),
        decisions=decisions,
        compared=compared,
        changed=changed,
        gain=sum(advantages) / decisions,
        gain_error=math.sqrt(sum(error**2 for error in errors)) / decisions,
        futures=futures,
    )
