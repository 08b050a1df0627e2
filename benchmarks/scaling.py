"""What a second node is worth: rollouts of two nodes with a worker each against one of each, and what bounds more of them.

Run ``python -m benchmarks.scaling`` from the repository root, on a machine with two cores or more that does nothing else. Two Ray
nodes of one core each are started on this machine and stopped in the end. Rollouts with one and with two workers are timed in
turn, as many steps for each worker, and learning from them in between; what goes over the network is weighed. Figures that are
measured come first, then those that a model of an iteration makes of them. Some three minutes.
"""

from __future__ import annotations

import os
import pickle
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from cluster.node import Options as NodeOptions
from cluster.node import start_node, stop_node
from models.rllib.avl.settings import AVLSettings
from tuning.ray_cluster.check import Needs
from tuning.ray_cluster.session import ray_session
from tuning.training.options import TrainOptions, complete
from tuning.training.setup import algorithm_of, variant_options
from tuning.training.variants import base_scenario, training_groups

STEPS = 16_384  # of each worker in a round
ROUNDS = 5
PORT = 26_379
NETWORK = (("1 Gbit/s", 125e6), ("10 Gbit/s", 1250e6))
WORKERS = (1, 2, 4, 8, 16, 32, 64)
STAGES = {
    "while the price is searched for, without the graph": AVLSettings(),
    "afterwards, with the graph": AVLSettings(generations=0),
}


def main() -> None:
    folders = [Path(tempfile.mkdtemp(prefix="er", dir="/tmp")) for _ in range(2)]
    try:
        _start(folders)
        with ray_session(f"127.0.0.1:{PORT}", Needs(cpus=2)):
            for name, settings in STAGES.items():
                print(name)
                _measure(settings)
    finally:
        for folder in reversed(folders):
            stop_node(folder)
            shutil.rmtree(folder, ignore_errors=True)


def _start(folders: list[Path]) -> None:
    head = NodeOptions(
        action="start", head=True, port=PORT, dashboard_port=PORT + 1, worker_ports=f"{PORT + 10}-{PORT + 200}",
        num_cpus=1, folder=folders[0],
    )  # fmt: skip
    start_node(head)
    other = NodeOptions(
        action="start", address=f"127.0.0.1:{PORT}", worker_ports=f"{PORT + 300}-{PORT + 500}", num_cpus=1, folder=folders[1]
    )
    start_node(other)


def _measure(settings: AVLSettings) -> None:
    # Only now: importing Ray reads the environment, which the session has set.
    from ray.rllib.core.learner.training_data import TrainingData

    from models.rllib.rollout.collect import VectorAlgorithm, collect, share_weights, update_learners

    times: dict[int, list[float]] = {1: [], 2: []}
    learning: list[float] = []
    sharing: list[float] = []
    fragments: list[Any] = []
    weights = b""
    for workers in times:  # one after the other: their workers would be in each other's way
        options = complete(
            TrainOptions(num_env_runners=workers, steps_per_iteration=STEPS * workers, address="auto", avl=settings)
        )
        variants = variant_options(options)
        scenario = base_scenario(variants)
        groups = training_groups(scenario, variants, options.envs_per_runner)
        with algorithm_of(options, scenario, groups, 1) as made:
            algorithm = cast(VectorAlgorithm, made)
            for number in range(ROUNDS + 1):
                begun = time.perf_counter()
                fragments = collect(algorithm)
                sampled = time.perf_counter()
                update_learners(algorithm, TrainingData(episodes=cast(Any, fragments)))
                learned = time.perf_counter()
                share_weights(algorithm)
                if number:  # the first compiles, and fills the engines
                    times[workers].append(sampled - begun)
                    learning.append((learned - sampled) / (STEPS * workers))
                    sharing.append(time.perf_counter() - learned)
            assert algorithm.learner_group is not None
            weights = pickle.dumps(algorithm.learner_group.get_state("learner/rl_module", inference_only=True), protocol=5)
    rates = {workers: STEPS * workers / statistics.median(seconds) for workers, seconds in times.items()}
    step_bytes = len(pickle.dumps(fragments, protocol=5)) / (2 * STEPS)
    learner = 1 / statistics.median(learning)
    print(f"measured on {os.cpu_count()} cores, medians of {ROUNDS} rounds of {STEPS:,} steps for each worker")
    for workers, rate in rates.items():
        print(f"  rollouts, {workers} x 1 worker: {rate:,.0f} steps/s")
    print(f"  ratio: {rates[2] / rates[1]:.2f}")
    print(f"  learning: {learner:,.0f} steps/s on one core; handing out the weights: {1000 * statistics.median(sharing):.0f} ms")
    kib = len(weights) / 1024
    print(f"  over the network: {step_bytes:,.0f} bytes a step to the learner, {kib:,.0f} KiB of weights to each worker")
    print("model: an iteration of S steps with n workers takes S/(n r) + S/l + S b/B + n w/B")
    print("  | workers | " + " | ".join(f"steps/s at {name}" for name, _ in NETWORK) + " | of these in rollouts |")
    size = 32_768
    for workers in WORKERS:
        rollout = size / (workers * rates[1])
        rest = [size / learner + (size * step_bytes + workers * len(weights)) / speed for _, speed in NETWORK]
        cells = " | ".join(f"{size / (rollout + other):,.0f}" for other in rest)
        print(f"  | {workers} | {cells} | {100 * rollout / (rollout + rest[1]):.0f} % |")


if __name__ == "__main__":
    main()
