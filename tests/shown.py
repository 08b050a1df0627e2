"""A view made by hand, and what a router picks on it."""

from __future__ import annotations

import numpy as np

from rllib_envs.heuristic import RoutingPolicy
from rllib_envs.scenario import Scenario
from rllib_envs.sim.rows import ARRIVED_FEATURES, EXPERT_FEATURES, WHATIF_FEATURES
from rllib_envs.simulation import Simulation


def shown(scenario: Scenario, **values: list[float]) -> Simulation:
    """A cluster that shows these feature values of its experts, all of which can take the request; the rest is 0."""
    simulation = Simulation(scenario, 1)
    view = simulation.view
    for array in (view.experts, view.arrived, view.whatif, simulation.marginal):
        array[:] = 0
    view.action_mask[:] = 1
    tables = {EXPERT_FEATURES: view.experts, ARRIVED_FEATURES: view.arrived, WHATIF_FEATURES: view.whatif}
    for name, column in values.items():
        if name == "marginal":
            simulation.marginal[0, :-1] = column
            continue
        ((names, table),) = ((names, table) for names, table in tables.items() if name in names)
        table[0, :, names.index(name)] = column
    return simulation


def forbid(simulation: Simulation, *experts: int) -> Simulation:
    simulation.view.action_mask[0, list(experts)] = 0
    return simulation


def choose(router: RoutingPolicy, simulation: Simulation, times: int = 1) -> set[int]:
    """What the router picks, asked so many times."""
    rng = np.random.default_rng(0)
    picked = [router(simulation, rng) for _ in range(times)]
    assert {action.shape for action in picked} == {(1,)}
    return {int(action[0]) for action in picked}
