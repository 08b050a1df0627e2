"""RLModule of discrete SAC: actor, twin critics and temperature."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from models.action_value import ActionValue
from models.features import read_columns
from models.paper.networks import PaperPolicy, PaperSpec, PaperValues
from models.rllib.build import build_router
from models.rllib.distribution import MaskedCategorical
from models.rllib.router_module import TEMPERATURE

Q, TARGET_Q, NEXT_TARGET_Q, NEXT_LOGITS = "q", "target_q", "next_target_q", "next_logits"
"""Entries of the training output: action values of observations, (2, B, N+1), and logits of the next ones, (B, N+1)."""


class SACModule(TorchRLModule, InferenceOnlyAPI):
    """An actor, two critics, their target copies, and the learned temperature alpha.

    ``model_config`` may hold ``temperature`` and ``router``, as for a ``RouterModule``, or ``paper``, the fields of a
    ``PaperSpec``, instead of ``router``; and ``initial_alpha``, if it is not ``temperature``. Before training critics rank
    actions by the roll-out, and the actor by that less the price of congestion.
    """

    policy: nn.Module
    critics: nn.ModuleList
    target_critics: nn.ModuleList
    log_alpha: nn.Parameter

    def setup(self) -> None:
        """Build the networks."""
        config = self.model_config
        self.temperature: float = config.get("temperature", TEMPERATURE)
        if "paper" in config:
            spec = PaperSpec(**config["paper"])
            self.policy, critics = PaperPolicy(spec), [PaperValues(spec) for _ in range(2)]
        else:
            self.policy = router = build_router(config, self.observation_space)
            critics = [ActionValue(hidden=max(router.spec.hidden, 1), columns=router.spec.choice_columns) for _ in range(2)]
        self.critics = nn.ModuleList(critics)
        # What critics read of an observation: read once for all of them.
        self.read: Callable[[dict[str, Tensor]], Any] = dict if "paper" in config else read_columns
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(config.get("initial_alpha", self.temperature))))
        self.action_dist_cls = MaskedCategorical

    def router_to_serve(self) -> nn.Module:
        """The router to export."""
        return self.policy

    def get_non_inference_attributes(self) -> list[str]:
        """Attributes that rollout workers do not need."""
        return ["critics", "target_critics", "log_alpha"]

    def logits(self, observation: dict[str, Tensor]) -> Tensor:
        """(B, N + 1) masked logits of the actor."""
        return self.policy(observation) / self.temperature

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.logits(batch[Columns.OBS])}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        now, after = batch[Columns.OBS], batch[Columns.NEXT_OBS]
        features = self.read(now)
        output = {Columns.ACTION_DIST_INPUTS: self.logits(now), Q: _values(self.critics, features)}
        with torch.no_grad():
            output[TARGET_Q] = _values(self.target_critics, features)
            output[NEXT_TARGET_Q] = _values(self.target_critics, self.read(after))
            output[NEXT_LOGITS] = self.logits(after)
        return output

    @torch.no_grad()
    def update_targets(self, polyak: float) -> None:
        """Update the target critics: ``target <- polyak * target + (1 - polyak) * critic``."""
        for slow, fast in zip(self.target_critics.parameters(), self.critics.parameters(), strict=True):
            slow.lerp_(fast, 1 - polyak)


def _values(critics: nn.ModuleList, features: Any) -> Tensor:
    return torch.stack([critic(features) for critic in critics])
