"""The worlds that a router is trained in: one scenario for each environment, which keeps it for the whole run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from models.rllib.env_groups import Group
from rllib_envs.capacity import capacity_rps
from rllib_envs.errors import InputError
from rllib_envs.scenario import Observation, Reward, Scenario, Variation, load_scenario, with_workload
from tuning.workloads import TraceOptions, make_workloads

MIXED, OWN = "mixed", "own"
"""Loads beside those of ``make_workloads``: one for each environment, and the scenario's own."""

MARGINAL = Reward(realised_qos=0.0, marginal_qos=1.0)
PAPER = Reward(realised_qos=1.0, paper_impact=1.0)

_FLEET_SHARE = 8  # one environment in so many for each of the other fleets
_BURSTS = Variation(fault_share=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldOptions:
    """What the worlds are made of."""

    scenario: str
    load: str
    requests: int
    fleets: Sequence[str]
    variation: bool
    observation: Observation
    reward: Reward


def base_world(options: WorldOptions) -> Scenario:
    """The scenario under its load, with reward and observation as asked for.

    Raises:
        InputError: no such scenario or load.
    """
    return _dressed(load_scenario(options.scenario), options)


def training_groups(own: Scenario, options: WorldOptions, environments: int) -> list[Group]:
    """The worlds of a rollout worker's environments: most in the scenario itself, an eighth in each of the other fleets.

    Under mixed load the environments of a group have loads spaced evenly in logarithm over the scenario's ``mixed_range``, and
    Poisson arrivals give way to bursts in some episodes. With ``variation`` each episode has faults drawn for it as well.

    Args:
        own: ``base_world`` of the options.
        options: as for it; a fleet is a number of experts' preset or any other scenario.
        environments: environments of the worker.

    Raises:
        InputError: too few environments, or no such fleet.
    """
    each = max(environments // _FLEET_SHARE, 1)
    count = environments - each * len(options.fleets)
    if count < 1:
        raise InputError(
            f"envs-per-runner = {environments}: must be more than the {len(options.fleets)} fleets trained on beside"
        )
    fleets = [_dressed(replace(load_scenario(name), workload=own.workload), options) for name in options.fleets]
    return [(_spread(own, count, options), count), *((_spread(fleet, each, options), each) for fleet in fleets)]


def _dressed(world: Scenario, options: WorldOptions) -> Scenario:
    loads = () if options.load == OWN else (options.load,)
    (workload,) = make_workloads(world, loads, (), TraceOptions(), options.requests)
    return replace(workload.scenario, reward=options.reward, observation=options.observation)


def _spread(world: Scenario, count: int, options: WorldOptions) -> Scenario | tuple[Scenario, ...]:
    bursts = options.load == MIXED and world.workload.arrivals.kind == "poisson"
    if options.variation:
        world = replace(world, variation=Variation() if bursts else Variation(burst_share=0.0))
    elif bursts:
        world = replace(world, variation=_BURSTS)
    if options.load != MIXED:
        return world
    low, high = world.workload.mixed_range
    shares = np.geomspace(low, high, count) if count > 1 else [np.sqrt(low * high)]
    return tuple(with_workload(world, load=float(share * capacity_rps(world))) for share in shares)
