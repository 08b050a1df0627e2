"""Ray Tune searches settings of AVL, our own learner.

What it does: tries two learning rates of `AVLConfig` on `edge6` with `tune.Tuner`.

How to run it:

    python examples/avl_under_tune.py
    python examples/avl_under_tune.py --smoke    # a tiny run: under a minute

What to expect: one line per trial with its learning rate and its mean QoS per request. With --smoke
both show a QoS of 0.060: of 2 short fragments, in which few requests finish. For whole searches with
pruning, resuming and a report, use `edgeroute sweep`.
"""

import argparse
import tempfile

import ray
from ray import tune

from models.rllib import AVL, AVLConfig


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="Ray Tune searches settings of AVL")
    parser.add_argument("--smoke", action="store_true", help="a tiny run")
    smoke = parser.parse_args().smoke
    config = (
        AVLConfig()
        .environment(env_config={"scenario": "edge3" if smoke else "edge6"})
        .env_runners(num_envs_per_env_runner=2 if smoke else 64, rollout_fragment_length=16 if smoke else 128)
        .training(lr=tune.grid_search([3e-4, 1e-3]), warmup=1 if smoke else 5, generations=0)
        .debugging(seed=0, log_level="ERROR")
    )
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    with tempfile.TemporaryDirectory() as folder:
        run = tune.RunConfig(stop={"training_iteration": 1 if smoke else 20}, storage_path=folder, verbose=0)
        results = tune.Tuner(AVL, param_space=config, run_config=run).fit()  # pyright: ignore[reportArgumentType]
    for result in results:
        if result.error is not None:
            raise SystemExit(f"a trial failed: {result.error}")
        settings, metrics = result.config or {}, result.metrics or {}
        print(f"lr {settings['lr']:g}: mean QoS {metrics['env_runners']['qos_mean']:.3f}")


if __name__ == "__main__":
    main()
