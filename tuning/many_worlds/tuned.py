"""Tune impact-greedy for one world: one parameter after another, with all values of a parameter in one batch of clusters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rllib_envs.baselines import HEURISTICS, Actions
from rllib_envs.heuristic import heuristic
from rllib_envs.scenario import Scenario
from rllib_envs.simulation import Simulation
from tuning.evaluation.matrix import start_simulation
from tuning.metrics.episode import mean_qos

BASELINE = "calibrated-impact-greedy"
"""What a router is measured against: impact-greedy, which corrects predictions and engine figures on the way like a router."""

DEFAULTS = {"price": 0.0, "shrink": 0.75, "tau": 0.1}
"""Its parameters where nobody tunes them."""

Point = dict[str, float]


def tune(scenario: Scenario, seeds: Sequence[int]) -> Point:
    """Choose price, shrink and tau by the mean QoS over episodes: each from its grid, then the price once more, finer.

    Args:
        scenario: the world.
        seeds: of the episodes that each value meets.
    """
    best = DEFAULTS
    for name in ("price", "shrink", "tau"):
        best = _best(scenario, seeds, [best | {name: value} for value in HEURISTICS[BASELINE].parameters[name].grid])
    return _best(scenario, seeds, [best | {"price": price} for price in _finer(best["price"])])


def _finer(price: float) -> list[float]:
    """A price of the grid and the middles to its neighbours; above the last one, twice and four times as much."""
    grid = HEURISTICS[BASELINE].parameters["price"].grid
    i = grid.index(price)
    above = [(price + grid[i + 1]) / 2] if i + 1 < len(grid) else [2 * price, 4 * price]
    return [price, *([(grid[i - 1] + price) / 2] if i else []), *above]


def _best(scenario: Scenario, seeds: Sequence[int], points: Sequence[Point]) -> Point:
    """The first point with the greatest mean QoS."""
    qos = mean_qos_of(scenario, seeds, points)
    return points[int(np.argmax(qos))]


def mean_qos_of(scenario: Scenario, seeds: Sequence[int], points: Sequence[Point]) -> list[float]:
    """Mean QoS of impact-greedy over the episodes at each point. Points with the same tau run as one batch."""
    found: dict[int, float] = {}
    for tau in dict.fromkeys(point["tau"] for point in points):
        group = [i for i, point in enumerate(points) if point["tau"] == tau]
        repeats = len(seeds)
        price, shrink = (np.repeat([points[i][name] for i in group], repeats)[:, None] for name in ("price", "shrink"))
        simulation = _simulate(scenario, list(seeds) * len(group), tau, price=price, shrink=shrink)
        qos = [mean_qos(simulation.records(cluster)) for cluster in range(repeats * len(group))]
        found |= {i: float(np.mean(qos[k * repeats : (k + 1) * repeats])) for k, i in enumerate(group)}
    return [found[i] for i in range(len(points))]


def _simulate(scenario: Scenario, seeds: Sequence[int], tau: float, **parameters: Any) -> Simulation:
    """An episode a cluster, with parameters (clusters, 1) of its own."""

    def route(simulation: Simulation, rng: np.random.Generator) -> Actions:
        return HEURISTICS[BASELINE](simulation, rng, **parameters)

    needs = HEURISTICS[BASELINE].needs
    world = replace(scenario, observation=replace(scenario.observation, whatif_tau=tau))
    return start_simulation(heuristic(needs=needs)(route), world, seeds)
