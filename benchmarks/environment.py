"""Speed of the vector environment: environment steps per CPU-second through ``VectorEnv.step``, observations included.

Run ``python -m benchmarks.environment``. 64 sub-environments of the preset edge6, autoreset and the drawing of new episodes
included; join-shortest-queue decides (from the observation) so that the queues are those of a working cluster. The time of the
router is measured apart and taken out. Figures are the best of five runs on one core.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from benchmarks.timing import REPEATS
from rllib_envs.baselines import impact_greedy, join_shortest_queue
from rllib_envs.env import EdgeRoutingEnv, EdgeRoutingVectorEnv
from rllib_envs.scenario import Scenario, with_workload
from rllib_envs.scenarios.load import load_scenario

ENVS, STEPS, WARM_UP = 64, 600, 400


def steps_per_cpu_s(scenario: Scenario, *, whatif: bool) -> float:
    """Environment steps per CPU-second in the steady state of the load."""
    env = EdgeRoutingVectorEnv(ENVS, replace(scenario, observation=replace(scenario.observation, whatif=whatif)))
    rng = np.random.default_rng(0)
    router = impact_greedy if whatif else join_shortest_queue
    env.reset(seed=0)

    def run(steps: int) -> float:
        spent = 0.0
        for _ in range(steps):
            actions = router(env.simulation, rng)
            start = time.process_time()
            env.step(actions)
            spent += time.process_time() - start
        return spent

    run(WARM_UP)
    return ENVS * STEPS / min(run(STEPS) for _ in range(REPEATS))


def single_steps_per_cpu_s(scenario: Scenario) -> float:
    """The same for the single environment."""
    env = EdgeRoutingEnv(scenario)
    env.reset(seed=0)
    start = time.process_time()
    for step in range(1000):
        env.step(np.int64(step % scenario.n_experts))
    return 1000 / (time.process_time() - start)


def main() -> None:
    """Print the table."""
    edge6 = with_workload(load_scenario("edge6"), requests=1000)
    print(f"{'edge6':10}{'steps/s':>12}{'with what-if':>14}{'single env':>12}{'ratio':>8}")
    for load in ("light", "moderate", "heavy"):
        scenario = with_workload(edge6, load=load)
        plain, whatif = (steps_per_cpu_s(scenario, whatif=key) for key in (False, True))
        single = single_steps_per_cpu_s(scenario)
        print(f"{load:10}{plain:12,.0f}{whatif:14,.0f}{single:12,.0f}{plain / single:8.1f}")


if __name__ == "__main__":
    main()
