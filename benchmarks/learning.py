"""Speed of learning: rollouts and SAC updates, RLlib's own way and ours, per CPU-second on one core.

Run ``OMP_NUM_THREADS=1 python -m benchmarks.learning``. Rollouts: 128 sub-environments of edge6 under heavy load and the same
module, stepped by RLlib's ``SingleAgentEnvRunner`` and by our ``VectorEnvRunner``, without what-if results, where the worker's
own time shows, and with what training takes: what-if results and counterfactuals. SAC: whole training steps (sampling from 64
sub-environments, replay, updates; one update of 256 rows for 64 steps) of RLlib's SAC with its episode replay buffer and of
ours, with the same networks; the small one shows the time of everything but the networks. The best of a few measurements counts.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace
from typing import Any

import torch
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.algorithms.sac.torch.default_sac_torch_rl_module import DefaultSACTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from torch import nn

from benchmarks.timing import cpu_s
from models.action_value import ActionValue
from models.features import read_columns
from models.rllib.rollout.runner import VectorEnvRunner
from models.rllib.router_module import BaselineModule
from models.rllib.sac.algorithm import sac_config
from models.router import Router, RouterSpec
from rllib_envs import ENV_ID
from rllib_envs.scenario import Reward, Scenario, with_workload
from rllib_envs.scenarios.load import load_scenario
from tuning.ray_cluster.check import Needs
from tuning.ray_cluster.session import ray_session

ENVS, ROWS = 128, 16
SAC_ENVS, UPDATES, BATCH = 64, 8, 256
TEMPERATURE = 0.015


def scenario(*, whatif: bool) -> Scenario:
    """Edge6 under heavy load, in episodes of a thousand requests."""
    edge6 = with_workload(load_scenario("edge6"), requests=1000, load="heavy")
    observation = replace(edge6.observation, whatif=whatif, counterfactual=whatif)
    return replace(edge6, observation=observation, reward=Reward(realised_qos=float(not whatif), marginal_qos=float(whatif)))


def router(hidden: int, *, whatif: bool) -> RouterSpec:
    """A router without a graph encoder."""
    return RouterSpec(encoder="aggregates", hidden=hidden, impact_hidden=hidden, impact=whatif)


def rollout_steps_per_cpu_s(runner_class: Any, *, whatif: bool) -> float:
    """Environment steps per CPU-second, exploring."""
    model = {"router": router(64, whatif=whatif).to_dict(), "temperature": TEMPERATURE}
    config = (
        PPOConfig()
        .environment(f"rllib_envs:{ENV_ID}", env_config={"scenario": scenario(whatif=whatif)})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=ENVS, gym_env_vectorize_mode="vector_entry_point")
        .rl_module(rl_module_spec=RLModuleSpec(module_class=BaselineModule, model_config=model))
        .debugging(seed=1)
    )
    runner = runner_class(config=config)
    seconds = cpu_s(lambda: runner.sample(num_timesteps=ENVS * ROWS), repeats=3)
    runner.stop()
    return ENVS * ROWS / seconds


class _Passed(nn.Module):
    """The encoder of a network that takes observations as they are."""

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {ENCODER_OUT: batch[Columns.OBS]}


class _Actor(Router):
    """Masked logits that RLlib's ``softmax().log()`` can take."""

    def forward(self, observation: Any, terms: torch.Tensor | None = None) -> torch.Tensor:
        return (super().forward(observation, terms) / TEMPERATURE).clamp(min=-40.0)


class _Critic(ActionValue):
    def forward(self, columns: Any, *rest: Any, **named: Any) -> torch.Tensor:
        return super().forward(read_columns(columns), *rest, **named)  # RLlib gives it an observation


class StockSACModule(DefaultSACTorchRLModule):
    """Our networks in RLlib's SAC module."""

    def setup(self) -> None:
        hidden = self.model_config["hidden"]
        self.twin_q = True
        self.pi_encoder, self.pi = _Passed(), _Actor(router(hidden, whatif=True))
        self.qf_encoder, self.qf = _Passed(), _Critic(hidden=hidden)
        self.qf_twin_encoder, self.qf_twin = _Passed(), _Critic(hidden=hidden)


def stock_sac(hidden: int) -> Any:
    """RLlib's SAC: one round samples a step of each environment and makes one update."""
    return (
        SACConfig()
        .environment(f"rllib_envs:{ENV_ID}", env_config={"scenario": scenario(whatif=True)})
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=SAC_ENVS,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=1,
        )
        .rl_module(rl_module_spec=RLModuleSpec(module_class=StockSACModule, model_config={"hidden": hidden, "twin_q": True}))
        .training(
            train_batch_size_per_learner=BATCH,
            replay_buffer_config={"type": "EpisodeReplayBuffer", "capacity": 20_000},
            num_steps_sampled_before_learning_starts=1_000,
            actor_lr=3e-4,
            critic_lr=3e-4,
            alpha_lr=3e-4,
            lr=None,
            target_entropy=0.6,
        )
    )


def our_sac(hidden: int) -> Any:
    """Ours: a round samples ``UPDATES`` steps of each environment and makes as many updates."""
    spec = router(hidden, whatif=True)
    groups = [(scenario(whatif=True), SAC_ENVS)]
    config = sac_config(groups, seed=1, env_runners=0, rows=UPDATES, router=spec, temperature=TEMPERATURE)
    return config.training(minibatch_size=BATCH, steps_per_update=SAC_ENVS, replay_capacity=20_000, learning_starts=1_000)


def updates_per_cpu_s(config: Any, *, rounds: int, updates: int) -> float:
    """Updates per CPU-second, sampling included, once learning has begun; a round makes ``updates``."""
    algorithm = config.build_algo()
    while len(algorithm.replay if hasattr(algorithm, "replay") else algorithm.local_replay_buffer) == 0:
        algorithm.training_step()
    for _ in range(1_000 // (SAC_ENVS * updates) + 1):
        algorithm.training_step()

    def run() -> None:
        for _ in range(rounds):
            algorithm.training_step()

    seconds = cpu_s(run, repeats=2)
    algorithm.stop()
    return rounds * updates / seconds


def main() -> None:
    """Print the two tables."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print(f"{'rollouts, steps/s':24}{'RLlib':>10}{'ours':>10}{'ratio':>8}")
    for whatif in (False, True):
        stock, ours = (rollout_steps_per_cpu_s(cls, whatif=whatif) for cls in (SingleAgentEnvRunner, VectorEnvRunner))
        print(f"{'with what-if' if whatif else 'plain':24}{stock:10,.0f}{ours:10,.0f}{ours / stock:8.1f}")
    with contextlib.ExitStack() as stack:
        stack.enter_context(ray_session("local", Needs()))
        print(f"{'SAC, updates/s':24}{'RLlib':>10}{'ours':>10}{'ratio':>8}")
        for hidden in (8, 64):
            stock = updates_per_cpu_s(stock_sac(hidden), rounds=4, updates=1)
            ours = updates_per_cpu_s(our_sac(hidden), rounds=2, updates=UPDATES)
            print(f"{f'hidden {hidden}':24}{stock:10.1f}{ours:10.1f}{ours / stock:8.1f}")


if __name__ == "__main__":
    main()
