"""PPO for the per-expert router: its configuration, its learner, and what it logs.

Three things make it learn within minutes: it starts from the predicted marginal QoS and lets the critic warm up before it
moves; it looks some hundred decisions ahead, for as long as a request stays; and its rewards are rid of most of their noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.learner import GeneralAdvantageEstimation
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from torch import Tensor

from models.per_expert import predicted_marginal
from models.rllib.ppo_module import PerExpertPPOModule
from rllib_envs import ENV_ID
from rllib_envs.observation import ARRIVED_FEATURES
from rllib_envs.scenario import Scenario

STEP_SUMS = ("finished", "late", "dropped", "rejected")
"""Entries of a step's info that are logged as sums over the sample, under these names; the reward likewise."""

_CRITIC_WARMUP_STEPS = 20_000
_MEAN_GAIN = 0.1


def ppo_config(
    scenario: Scenario, *, seed: int, lr: float, env_runners: int, envs_per_runner: int, steps: int, model: dict[str, Any]
) -> PPOConfig:
    """Configuration of PPO in a scenario with what-if results, counterfactuals and the reward ``marginal_qos`` alone.

    Args:
        scenario: the world to train in.
        seed: seed of weights, episodes and exploration.
        lr: learning rate.
        env_runners: worker processes that step environments; 0 steps them in this process.
        envs_per_runner: environments in each, stepped together.
        steps: environment steps in an iteration.
        model: ``hidden`` and ``temperature`` of ``PerExpertPPOModule``.
    """
    return (
        PPOConfig()
        .environment(f"rllib_envs:{ENV_ID}", env_config={"scenario": scenario})
        .env_runners(
            num_env_runners=env_runners,
            num_envs_per_env_runner=envs_per_runner,
            gym_env_vectorize_mode="vector_entry_point",
        )
        .learners(num_learners=0)
        .callbacks(StepMetrics)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=PerExpertPPOModule, model_config=model))
        .training(
            learner_class=RouterLearner,
            lr=lr,
            gamma=0.995,
            lambda_=0.95,
            train_batch_size_per_learner=steps,
            minibatch_size=max(steps // 4, 1),
            num_epochs=4,
            clip_param=0.2,
            vf_clip_param=float("inf"),
            kl_coeff=0.2,
            grad_clip=1.0,
        )
        .debugging(seed=seed)
    )


class QuietRewards(ConnectorV2):
    """Takes from each reward what no decision can change and what prediction errors bring in by chance.

    Of a step with reward ``r = m(s, a)``, the true marginal QoS of the action taken, it makes
    ``r - sum_a' pi(a'|s) m(s, a') + I(s) - t(s) - c``: the policy's mean over all actions is replaced by the best PREDICTED
    marginal QoS I, and the best told score t of the arrived request, which depends on no action, and the running mean c are
    subtracted. So the noise of true scores and lengths is gone: on edge6 three quarters of the variance that subtracting t
    leaves. What an action has over another stays exact; how good a state is is measured by I, whose errors should not depend
    much on the state.
    """

    _mean: float | None = None

    def __call__(self, *, batch: dict[str, Any], episodes: list[Any], **kwargs: Any) -> dict[str, Any]:
        """Replace the rewards of the batch; each of its rows is a step of ``episodes``, in order."""
        for columns in batch.values():
            observation, mask = columns[Columns.OBS], columns[Columns.LOSS_MASK]
            marginal = torch.from_numpy(_marginals(episodes)).to(mask.device)
            mean = (columns[Columns.ACTION_DIST_INPUTS].softmax(dim=-1) * marginal).sum(dim=-1)
            told = observation["arrived"][..., ARRIVED_FEATURES.index("told_score")].amax(dim=-1)
            rewards = columns[Columns.REWARDS] - mean + _best_predicted(observation) - told
            here = float(rewards[mask].mean())
            self._mean = here if self._mean is None else self._mean + _MEAN_GAIN * (here - self._mean)
            columns[Columns.REWARDS] = rewards - self._mean
        return batch


class RouterLearner(PPOTorchLearner):
    """PPO on ``QuietRewards``, with an optimizer each for actor and critic.

    The actor's learning rate is 0 at first, then rises linearly: it starts as a good router, which the advantages of an
    untrained critic would ruin.
    """

    def build(self) -> None:
        """Insert ``QuietRewards`` before the advantages are computed."""
        super().build()
        assert self._learner_connector is not None
        self._learner_connector.insert_before(GeneralAdvantageEstimation, QuietRewards())

    def configure_optimizers_for_module(self, module_id: str, config: AlgorithmConfig | None = None) -> None:
        """Register both optimizers."""
        assert config is not None
        module = self.module[module_id].unwrapped()
        warm = _CRITIC_WARMUP_STEPS
        schedules: dict[str, Any] = {"policy": [[0, 0.0], [warm, 0.0], [2 * warm, config.lr]], "value": config.lr}
        for name, schedule in schedules.items():
            params = list(getattr(module, name).parameters())
            self.register_optimizer(
                module_id=module_id,
                optimizer_name=name,
                optimizer=torch.optim.Adam(params, eps=1e-5),
                params=params,
                lr_or_lr_schedule=schedule,
            )


class StepMetrics(RLlibCallback):
    """Logs sums over the steps of each sample: there even when no episode has ended."""

    def on_sample_end(self, *, metrics_logger: Any = None, samples: Any, **kwargs: Any) -> None:
        """Log ``STEP_SUMS`` and ``reward``."""
        # the first info of a piece of an episode belongs to its reset or to the piece before
        infos = [info for episode in samples for info in episode.get_infos(slice(1, None))]
        for name in STEP_SUMS:
            metrics_logger.log_value(name, float(sum(info[name] for info in infos)), reduce="sum")
        metrics_logger.log_value("reward", sum(float(np.sum(e.get_rewards())) for e in samples), reduce="sum")


def _marginals(episodes: list[Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(steps, N+1) true marginal QoS of each action in each step; 0 where an expert is full, which no policy chooses."""
    infos = [info for episode in episodes for info in episode.get_infos(slice(0, len(episode)))]
    return np.nan_to_num(np.stack([info["marginal_qos"] for info in infos]).astype(np.float32))


def _best_predicted(observation: dict[str, Tensor]) -> Tensor:
    """(B,) largest predicted marginal QoS of the possible actions; drop has 0."""
    possible = observation["action_mask"][..., :-1] > 0
    return torch.where(possible, predicted_marginal(observation), 0.0).amax(dim=-1).clamp(min=0)
