"""RLModule of discrete SAC: actor, twin critics and temperature."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from models.action_value import ActionValue
from models.impact import ImpactEstimator
from models.paper.networks import PaperPolicy, PaperSpec, PaperValues
from models.rllib.build import build_router
from models.rllib.distribution import MaskedCategorical
from models.rllib.router_module import TEMPERATURE
from models.router import Router

Q, TARGET_Q, NEXT_TARGET_Q, NEXT_LOGITS = "q", "target_q", "next_target_q", "next_logits"
"""Entries of the training output: action values of observations, (2, B, N+1), and logits of the next ones, (B, N+1)."""

IMPACT = "impact"
"""Entry of the predicted marginal QoS of experts, (B, N), where it is estimated apart: ``Q`` and ``TARGET_Q`` are without it."""


class SACModule(TorchRLModule, InferenceOnlyAPI):
    """An actor, two critics, their target copies, and the learned temperature alpha.

    ``model_config`` may hold ``temperature`` and ``router``, as for a ``RouterModule``, or ``paper``, the fields of a
    ``PaperSpec``, instead of ``router``; and ``initial_alpha``, if it is not ``temperature``. Before training both actor and
    critics rank actions by the roll-out less the price of congestion (``Router.untrained``). Critics read the embedding of the
    actor's graph encoder, but do not move it.

    With ``counterfactual`` in ``model_config`` a value is the impact of the action on the requests present plus that on later
    ones. An impact estimator learns the first from the true marginal QoS of ALL actions, and the critics the second alone.
    """

    policy: nn.Module
    critics: nn.ModuleList
    target_critics: nn.ModuleList
    log_alpha: nn.Parameter

    def setup(self) -> None:
        """Build the networks."""
        config = self.model_config
        self.temperature: float = config.get("temperature", TEMPERATURE)
        critics: list[nn.Module]
        self.impact: ImpactEstimator | None = None
        if "paper" in config:
            spec = PaperSpec(**config["paper"])
            self.policy, critics = PaperPolicy(spec), [PaperValues(spec) for _ in range(2)]
        else:
            self.policy = router = build_router(config, self.observation_space)
            hidden, columns = max(router.spec.hidden, 1), router.spec.choice_columns
            critics = [ActionValue(hidden=hidden, columns=columns, embedding=router.embedding) for _ in range(2)]
            if config.get("counterfactual"):
                self.impact = ImpactEstimator(hidden=hidden, columns=columns, embedding=router.embedding)
        self.critics = nn.ModuleList(critics)
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(config.get("initial_alpha", self.temperature))))
        self.action_dist_cls = MaskedCategorical

    def router_to_serve(self) -> nn.Module:
        """The router to export."""
        return self.policy

    def get_non_inference_attributes(self) -> list[str]:
        """Attributes that rollout workers do not need."""
        return ["critics", "target_critics", "impact", "log_alpha"]

    def logits(self, observation: dict[str, Tensor]) -> Tensor:
        """(B, N + 1) masked logits of the actor."""
        return self.policy(observation) / self.temperature

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.logits(batch[Columns.OBS])}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        logits, inputs, impact = self._read(batch[Columns.OBS])
        output = {Columns.ACTION_DIST_INPUTS: logits, Q: _values(self.critics, inputs)}
        with torch.no_grad():
            output[TARGET_Q] = _values(self.target_critics, inputs)
            output[NEXT_LOGITS], later, later_impact = self._read(batch[Columns.NEXT_OBS])
            output[NEXT_TARGET_Q] = _values(self.target_critics, later)
            if later_impact is not None:
                output[NEXT_TARGET_Q] += with_drop(later_impact)
        return output if impact is None else output | {IMPACT: impact}

    def _read(self, observation: dict[str, Tensor]) -> tuple[Tensor, tuple[Any, ...], Tensor | None]:
        """(B, N + 1) masked logits of the actor, the arguments of a critic, and (B, N) the impact if it is estimated apart."""
        if not isinstance(self.policy, Router):
            return self.logits(observation), (observation,), None
        parts = self.policy.parts(observation)
        logits = self.policy.scores(observation, parts) / self.temperature
        prior = self.policy.untrained(observation, parts.columns)
        embedding = None if parts.embedding is None else parts.embedding.detach()
        if self.impact is None:
            return logits, (parts.columns, embedding, prior), None
        return logits, (parts.columns, embedding, prior - parts.columns.marginal), self.impact(parts.columns, parts.embedding)

    @torch.no_grad()
    def update_targets(self, polyak: float) -> None:
        """Update the target critics: ``target <- polyak * target + (1 - polyak) * critic``."""
        for slow, fast in zip(self.target_critics.parameters(), self.critics.parameters(), strict=True):
            slow.lerp_(fast, 1 - polyak)


def with_drop(impact: Tensor) -> Tensor:
    """(B, N) -> (B, N + 1): the impact of a drop is 0."""
    return nn.functional.pad(impact, (0, 1))


def _values(critics: nn.ModuleList, inputs: tuple[Any, ...]) -> Tensor:
    return torch.stack([critic(*inputs) for critic in critics])
