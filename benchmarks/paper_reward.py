"""What the reward of arXiv 2508.00234 pays: mean per request of QoS less P_t, for heuristics and for dropping everything.

Run ``OMP_NUM_THREADS=1 python -m benchmarks.paper_reward`` (a minute on one core). A policy learns what it is paid for. Where the
heuristics earn less than the 0 of dropping everything, the reward asks for drops.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rllib_envs.heuristic import RoutingPolicy
from rllib_envs.scenario import Reward, Scenario, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.simulation import Simulation
from tuning.evaluation.matrix import EVALUATION_SEEDS
from tuning.output.tables import markdown_table
from tuning.specs.routers import build_router, parse_router

PAID = Reward(realised_qos=1.0, paper_impact=1.0)
WORLDS = {"paper3, 3 requests/s": ("paper3", 3.0), "edge6, moderate": ("edge6", "moderate"), "edge6, heavy": ("edge6", "heavy")}
ROUTERS = ("random", "round-robin", "join-shortest-queue", "quality-greedy", "myopic-impact-greedy", "impact-greedy:price=3")
SEEDS, REQUESTS = 4, 1500


def paid(scenario: Scenario, decide: RoutingPolicy) -> tuple[float, float]:
    """Mean reward and mean QoS per request of a policy."""
    seeds = list(EVALUATION_SEEDS[:SEEDS])
    simulation = Simulation(scenario, len(seeds))
    simulation.start_all(seeds)
    rng, total, qos = np.random.default_rng(0), 0.0, 0.0
    while not (over := simulation.over).all():
        total += simulation.step(decide(simulation, rng))[~over].sum()
        qos += simulation.steps["qos"][~over].sum()
    count = int(simulation.workload.total.sum())
    return float(total / count), float(qos / count)


def drop_all(simulation: Simulation, rng: np.random.Generator) -> NDArray[np.int64]:
    """The action ``drop`` everywhere."""
    return np.full(simulation.batch, simulation.scenario.n_experts)


def main() -> None:
    """Print the table."""
    rows = [["dropping everything", *["0 (0)"] * len(WORLDS)]]
    for name in ROUTERS:
        cells: list[str] = []
        for preset, load in WORLDS.values():
            scenario = replace(with_workload(load_scenario(preset), load=load, requests=REQUESTS), reward=PAID)
            decide, observation = build_router(parse_router(name), scenario.observation)
            reward, qos = paid(replace(scenario, observation=observation), decide)
            cells.append(f"{reward:+.2f} ({qos:.2f})")
        rows.append([name, *cells])
    print(markdown_table(["reward (QoS) per request", *WORLDS], rows))


if __name__ == "__main__":
    main()
