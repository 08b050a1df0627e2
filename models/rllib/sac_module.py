"""Actor, twin critics and temperature of discrete SAC as RLlib sees them."""

from __future__ import annotations

import copy
import math
from typing import Any

import gymnasium as gym
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from models.per_expert import PerExpertPolicy, expert_features
from models.per_expert_critic import PerExpertCritic
from models.rllib.ppo_module import MaskedCategorical

Q, TARGET_Q, NEXT_TARGET_Q, NEXT_LOGITS = "q", "target_q", "next_target_q", "next_logits"
"""Entries of the training output: action values of observations, (2, B, N+1), and logits of the next ones, (B, N+1)."""


def build_policy(model_config: dict[str, Any], observation_space: gym.Space[Any]) -> nn.Module:
    """The actor: a module that maps an observation to (B, N+1) logits, masked ones at ``MASKED_LOGIT``.

    Args:
        model_config: ``hidden`` and ``temperature``, and ``policy``, the class, if it is not ``PerExpertPolicy``, with whose
            arguments it is built.
        observation_space: of one environment; it tells whether there are what-if results.
    """
    make = model_config.get("policy", PerExpertPolicy)
    return make(whatif=has_whatif(observation_space), hidden=model_config["hidden"], temperature=model_config["temperature"])


def has_whatif(observation_space: gym.Space[Any]) -> bool:
    """Whether observations hold the what-if results."""
    assert isinstance(observation_space, gym.spaces.Dict)
    return "whatif" in observation_space.spaces


class SACModule(TorchRLModule, InferenceOnlyAPI):
    """An actor (``build_policy``), two ``PerExpertCritic``, their slow copies, and the temperature alpha: a parameter too.

    ``model_config``: as for ``build_policy``, and ``initial_alpha``, if it is not ``temperature``. With that, an actor that
    follows the predicted marginal QoS is the soft optimum of critics that predict it: critics that have learned nothing do not
    move it.
    """

    policy: nn.Module
    critics: nn.ModuleList
    target_critics: nn.ModuleList
    log_alpha: nn.Parameter

    def setup(self) -> None:
        """Build the networks."""
        config = self.model_config
        self.policy = build_policy(config, self.observation_space)
        whatif = has_whatif(self.observation_space)
        self.critics = nn.ModuleList([PerExpertCritic(whatif=whatif, hidden=config["hidden"]) for _ in range(2)])
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(config.get("initial_alpha", config["temperature"]))))
        self.action_dist_cls = MaskedCategorical

    def get_non_inference_attributes(self) -> list[str]:
        """What rollout workers do without."""
        return ["critics", "target_critics", "log_alpha"]

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.policy(batch[Columns.OBS])}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        now, after = batch[Columns.OBS], batch[Columns.NEXT_OBS]
        features = expert_features(now)
        output = {Columns.ACTION_DIST_INPUTS: self.policy(now), Q: _values(self.critics, now, features)}
        with torch.no_grad():
            output[TARGET_Q] = _values(self.target_critics, now, features)
            output[NEXT_TARGET_Q] = _values(self.target_critics, after, expert_features(after))
            output[NEXT_LOGITS] = self.policy(after)
        return output

    @torch.no_grad()
    def update_targets(self, polyak: float) -> None:
        """Move the slow copies: ``target <- polyak * target + (1 - polyak) * critic``."""
        for slow, fast in zip(self.target_critics.parameters(), self.critics.parameters(), strict=True):
            slow.lerp_(fast, 1 - polyak)


def _values(critics: nn.ModuleList, observation: dict[str, Tensor], features: Tensor) -> Tensor:
    return torch.stack([critic(observation, features) for critic in critics])
