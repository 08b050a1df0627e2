"""RLlib's own PPO trains the router's network.

What it does: trains `RouterModule` on `edge6` with the stock `PPOConfig`, then saves and reloads it.

How to run it:

    python examples/stock_ppo.py
    python examples/stock_ppo.py --smoke    # a tiny run: seconds

What to expect: a line per iteration with the policy's entropy and the value loss, then the class
that was restored. With --smoke the entropy is 0.697 and the value loss 8.71. The router starts as
impact-greedy with a congestion price. Stock PPO estimates advantages with much noise: for results,
use `AVLConfig`.
"""

import argparse
import tempfile

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from models.rllib import RouterModule, training_scenario


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description="RLlib's own PPO trains the router's network")
    parser.add_argument("--smoke", action="store_true", help="a tiny run")
    smoke = parser.parse_args().smoke
    config = (
        PPOConfig()
        .environment("rllib_envs:EdgeRouting-v0", env_config={"scenario": training_scenario("edge6")})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2 if smoke else 16)
        .training(train_batch_size_per_learner=64 if smoke else 4096, minibatch_size=32 if smoke else 512, num_epochs=2)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=RouterModule))
        .debugging(seed=0, log_level="ERROR")
    )
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    algorithm = config.build_algo()
    for iteration in range(1 if smoke else 20):
        learned = algorithm.train()["learners"]["default_policy"]
        print(f"iteration {iteration + 1}: entropy {learned['entropy']:.3f}, value loss {learned['vf_loss']:.4f}")
    with tempfile.TemporaryDirectory() as folder:
        restored = Algorithm.from_checkpoint(algorithm.save_to_path(folder))
    print(f"restored: {type(restored.get_module()).__name__}")
    restored.stop()
    algorithm.stop()


if __name__ == "__main__":
    main()
