"""What deciding from a gateway's ledger costs, against deciding in the simulator that sees its engines.

Run ``OMP_NUM_THREADS=1 python -m benchmarks.ledger`` from the repository root. Simulated engines send
their tokens iteration by iteration (``gateway.simulated``); a gateway rebuilds what it shows its policy from them alone. Printed:

- *same*: share of the simulator's own decisions that the policy takes alike when it sees what the gateway sees;
- *QoS*: mean QoS when the gateway decides, less that of the simulator on the same requests, over seeds, with its 95 % interval;
- the same for gateways that each get a share of the requests at random: *blind* ones see only their own, the others share
  what they see; and for answers whose tokens are not seen before their end (*JSON*).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from gateway.live import LiveCluster
from gateway.policies import LivePolicy, load_policy
from gateway.simulated import compare_actions, serve
from rllib_envs.scenario import Scenario, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.simulation import Simulation
from tuning.metrics.statistics import mean_interval

ROUTERS = Path(__file__).parents[1] / "tuning" / "presets"
POLICIES = {
    "impact-greedy": "impact-greedy",
    "edge6-router": f"bundle:{ROUTERS / 'edge6-router'}",
    "any-cluster-router": f"bundle:{ROUTERS / 'any-cluster-router'}",
}
SETTINGS = {
    "one gateway": serve,
    "one gateway, JSON": partial(serve, streams=False),
    "two, blind": partial(serve, gateways=2),
    "eight, sharing": partial(serve, gateways=8, share=True),
    "eight, blind": partial(serve, gateways=8),
}
FIRST_SEED = 7_000_000


def simulated(scenario: Scenario, policy: LivePolicy, seed: int) -> float:
    """Mean QoS of an episode where the policy sees the simulation itself."""
    simulation = Simulation(replace(scenario, observation=policy.observation), 1)
    simulation.start(0, seed)
    rng = np.random.default_rng(seed)
    while not simulation.over[0]:
        simulation.step(np.array([policy.decide(cast(LiveCluster, simulation), rng).action]))
    return float(simulation.records(0).qos.mean())


def row(name: str, values: Sequence[float]) -> None:
    interval = mean_interval(values)
    print(f"  {name:24}{interval.mean:+.4f}  [{interval.low:+.4f}, {interval.high:+.4f}]", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=700)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--load", default="heavy", choices=("light", "moderate", "heavy"))
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    options = parser.parse_args()
    scenario = with_workload(load_scenario("edge6"), requests=options.requests, load=options.load)
    seeds = [FIRST_SEED + i for i in range(options.seeds)]
    for name in options.policies:
        policy = load_policy(POLICIES[name], scenario.observation)
        same = [compare_actions(scenario, policy, seed) for seed in seeds]
        base = [simulated(scenario, policy, seed) for seed in seeds]
        print(f"{name}, edge6 at {options.load} load: same action {np.mean(same):.2%}, QoS in the simulator {np.mean(base):.4f}")
        for setting, run in SETTINGS.items():
            row(setting, [run(scenario, policy, seed) - b for seed, b in zip(seeds, base, strict=True)])


if __name__ == "__main__":
    main()
