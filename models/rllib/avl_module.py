"""Router, critic and baseline of AVL as RLlib sees them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI
from ray.rllib.core.rl_module.torch import TorchRLModule

from models.critic import StateValue, UsualQuality
from models.rllib.build import build_router
from models.rllib.distribution import MaskedCategorical
from models.router import Parts


class AVLModule(TorchRLModule, InferenceOnlyAPI):
    """A ``Router`` that acts by softmax(score / temperature), what it learns from, and a slow copy of it that is to serve.

    ``model_config``: ``router``, the fields of its ``RouterSpec``, and ``temperature``, in QoS.
    """

    def setup(self) -> None:
        """Build the networks."""
        self.router = build_router(self.model_config, self.observation_space)
        self.temperature: float = self.model_config["temperature"]
        own = self.router.embedding // 2 if self.router.spec.encoder == "han" else self.router.embedding
        self.value = StateValue(hidden=self.router.spec.hidden, embedding=own)
        self.usual = UsualQuality()
        self.served = copy.deepcopy(self.router).requires_grad_(False)
        self.action_dist_cls = MaskedCategorical

    def get_non_inference_attributes(self) -> list[str]:
        """What rollout workers do without."""
        return ["value", "usual", "served"]

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.router(batch[Columns.OBS]) / self.temperature}

    def state_value(self, parts: Parts) -> torch.Tensor:
        """(B,) value of the state that the router's parts are of."""
        embedding = parts.embedding
        if embedding is not None and self.router.spec.encoder == "han":
            embedding = embedding[..., : embedding.shape[-1] // 2]  # the experts as they are
        return self.value(parts.columns, embedding)

    @torch.no_grad()
    def serve(self, keep: float) -> None:
        """Move the slow copy: ``served <- keep * served + (1 - keep) * router``."""
        for slow, fast in zip(self.served.parameters(), self.router.parameters(), strict=True):
            slow.lerp_(fast, 1 - keep)
        for slow, fast in zip(self.served.buffers(), self.router.buffers(), strict=True):
            slow.copy_(fast)  # the price is an average already
