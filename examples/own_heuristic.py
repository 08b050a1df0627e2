"""A heuristic router of your own, beside those that are shipped.

What it does: the router below sends a request where its told score is best after a charge for each request that is present. It
is one function. The script runs it on the same episodes as three shipped heuristics and prints the mean QoS of each.

Run it:

    python examples/own_heuristic.py
    edgeroute evaluate --routers best python:examples/own_heuristic.py:score_for_load:charge=0.02

The second command is the full comparison, with paired intervals, a report and figures.

Expect a QoS of .408 for join-shortest-queue, .430 for least-work, .404 for quality-greedy with a cap of 12, and .456 for the
router below, each within .005 (standard error over ten episodes).
"""

from __future__ import annotations

import argparse

import numpy as np

from rllib_envs.heuristic import Actions, Parameter, arrived_feature, available, best_expert, heuristic, present
from rllib_envs.scenario import with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.simulation import Simulation
from tuning.evaluation.matrix import EVALUATION_SEEDS, start_simulation
from tuning.specs.routers import parse_router


@heuristic(parameters={"charge": Parameter(low=0.0, high=1.0)})
def score_for_load(simulation: Simulation, rng: np.random.Generator, *, charge: float = 0.02) -> Actions:
    """The best told score less ``charge`` for each request at the expert."""
    view = simulation.view
    return best_expert(arrived_feature(view, "predicted_score") - charge * present(view), available(view))


def main() -> None:
    """Compare it with three that are shipped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="two short episodes")
    smoke = parser.parse_args().smoke
    scenario = with_workload(load_scenario("edge6"), load="heavy", requests=300 if smoke else 2000)
    seeds = EVALUATION_SEEDS[: 2 if smoke else 10]
    shipped = {name: parse_router(name) for name in ("join-shortest-queue", "least-work", "quality-greedy:cap=12")}
    for name, router in {**shipped, "score_for_load": score_for_load}.items():
        simulation = start_simulation(router, scenario, seeds)
        qos = [simulation.records(cluster).qos.mean() for cluster in range(len(seeds))]
        print(f"{name:24} QoS {np.mean(qos):.3f} +- {np.std(qos, ddof=1) / np.sqrt(len(qos)):.3f}")


if __name__ == "__main__":
    main()
