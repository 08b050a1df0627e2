"""RLModule of DQN: action values from the router's scores, and their slow copies."""

from __future__ import annotations

import copy
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from models.critic import StateValue
from models.rllib.router_module import BaselineModule
from models.router import Router

Q, BASELINE, NEXT_Q, NEXT_TARGET_Q = "q", "baseline", "next_q", "next_target_q"
"""Entries of the training output: action values, (B, N+1), of observations and of the next ones; and (B,) the baseline."""


class DQNModule(BaselineModule):
    """A ``BaselineModule`` whose router and value function together are the action values (dueling, Wang et al. 2016).

    ``Q(s, a) = V(s) + score(s, a) - b(s)``: the discounted sum of rewards above the baseline b of their request. The router's
    score of an action is its value over dropping the request, so V is the value of a drop, and the greedy action is the
    router's. Before training V is 0 and the router is impact-greedy with a price. Q is far below all others where an action is
    not possible.

    Attributes:
        epsilon: share of decisions that explore in training.
        guidance: share of these that follow the heuristic.
    """

    epsilon: Tensor
    guidance: Tensor

    def setup(self) -> None:
        """Build the networks."""
        super().setup()
        self.target_router = copy.deepcopy(self.router).requires_grad_(False)
        self.target_value = copy.deepcopy(self.value).requires_grad_(False)
        self.register_buffer("epsilon", torch.ones(()))
        self.register_buffer("guidance", torch.ones(()))

    def get_non_inference_attributes(self) -> list[str]:
        """Attributes that rollout workers do not need."""
        return [*super().get_non_inference_attributes(), "target_router", "target_value"]

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        now, after = batch[Columns.OBS], batch[Columns.NEXT_OBS]
        values, baseline = self._values(self.router, self.value, now)
        with torch.no_grad():
            next_values, _ = self._values(self.router, self.value, after)
            next_target, _ = self._values(self.target_router, self.target_value, after)
        return {Q: values, BASELINE: baseline, NEXT_Q: next_values, NEXT_TARGET_Q: next_target}

    def _values(self, router: Router, value: StateValue, observation: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(B, N + 1) action values, and (B,) the baseline, which no gradient of them reaches."""
        parts = router.parts(observation)
        baseline = self.baseline(parts.columns)
        state = value(parts.columns) - baseline.detach()
        return router.scores(observation, parts) + state.unsqueeze(-1), baseline

    @torch.no_grad()
    def update_targets(self, polyak: float) -> None:
        """Update the slow copies: ``target <- polyak * target + (1 - polyak) * own``."""
        for slow_part, part in ((self.target_router, self.router), (self.target_value, self.value)):
            for slow, fast in zip(slow_part.parameters(), part.parameters(), strict=True):
                slow.lerp_(fast, 1 - polyak)

    @torch.no_grad()
    def set_exploration(self, epsilon: float, guidance: float) -> None:
        """Set the shares of exploration."""
        self.epsilon.fill_(epsilon)
        self.guidance.fill_(guidance)
