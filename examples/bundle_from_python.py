"""The shipped router decides in a plain Python loop, without Ray and without the commands.

What it does: it loads the bundle ``tuning/presets/edge6-router``, steps a few simulated clusters, and takes the action of
the best score for each request. A heuristic then runs on the same requests. A serving gateway would call the router in the same
way, with observations of its own engines.

Run it:

    python examples/bundle_from_python.py

Expect a QoS of .685 for the shipped router and .650 for impact-greedy without tuned parameters. A decision takes a few
milliseconds, most of them in PyTorch.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from models.export.bundle import load_bundle
from rllib_envs.scenario import with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.simulation import Simulation
from tuning.evaluation.matrix import start_simulation
from tuning.specs.prompts import with_predictions
from tuning.specs.routers import SHIPPED_ROUTER, parse_router


def main() -> None:
    """Let the bundle decide for a few episodes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one short episode")
    smoke = parser.parse_args().smoke
    torch.set_num_threads(1)  # a decision is small: threads cost more than they save
    bundle = load_bundle(SHIPPED_ROUTER)
    print(f"Trained in {bundle.about['scenario']}; {sum(p.numel() for p in bundle.router.parameters()):,} weights.")
    scenario = with_workload(load_scenario("edge6"), load="heavy", requests=200 if smoke else 1000)
    scenario = with_predictions(scenario, "oracle-noise")  # so were its predictions in training
    scenario = replace(scenario, observation=bundle.observation)  # the world shows what the router was trained on
    seeds = list(range(2 if smoke else 5))
    simulation = Simulation(scenario, len(seeds))  # as many clusters as seeds, each at its own request
    simulation.start_all(seeds)
    decisions, start_s = 0, time.perf_counter()
    while not simulation.over.all():
        observation = {key: torch.from_numpy(value) for key, value in simulation.view._asdict().items() if value.size}
        with torch.inference_mode():
            actions = bundle.router(observation).argmax(-1).numpy()  # (clusters,); what cannot be done has the least score
        simulation.step(actions)
        decisions += len(seeds)
    spent_s = time.perf_counter() - start_s
    print(f"shipped router   QoS {mean_qos(simulation):.4f}, {1e3 * spent_s / decisions:.2f} ms a decision, simulation included")
    heuristic = start_simulation(parse_router("impact-greedy"), scenario, seeds)  # the same requests
    print(f"impact-greedy    QoS {mean_qos(heuristic):.4f}")


def mean_qos(simulation: Simulation) -> float:
    """Mean QoS per request over the clusters."""
    return float(np.mean([simulation.records(cluster).qos.mean() for cluster in range(simulation.batch)]))


if __name__ == "__main__":
    main()
