"""RLModule of AVL: router, critic and baseline."""

from __future__ import annotations

import copy
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from torch import Tensor

from models.rllib.router_module import BaselineModule
from models.router import Parts, Router


class AVLModule(BaselineModule):
    """A ``BaselineModule`` whose critic also reads the encoder's embedding, with an EMA copy of the router for export."""

    def setup(self) -> None:
        """Build the networks."""
        super().setup()
        self.ema_router = copy.deepcopy(self.router).requires_grad_(False)

    @property
    def embedding(self) -> int:
        """Width of the encoder's embedding of each expert without the request."""
        return self.router.embedding // 2 if self.router.spec.encoder == "han" else self.router.embedding

    def router_to_serve(self) -> Router:
        """The EMA copy."""
        return self.ema_router

    def get_non_inference_attributes(self) -> list[str]:
        """Attributes that rollout workers do not need."""
        return [*super().get_non_inference_attributes(), "served"]

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """(B,) values of the observed states."""
        return self.state_value(self.router.parts(batch[Columns.OBS]))

    def state_value(self, parts: Parts) -> Tensor:
        """(B,) value of the state, from the router's parts."""
        embedding = parts.embedding
        if embedding is not None and self.router.spec.encoder == "han":
            embedding = embedding[..., : embedding.shape[-1] // 2]  # the experts as they are
        return self.value(parts.columns, embedding)

    @torch.no_grad()
    def update_ema(self, keep: float) -> None:
        """Update the EMA copy: ``ema_router <- keep * ema_router + (1 - keep) * router``."""
        for slow, fast in zip(self.ema_router.parameters(), self.router.parameters(), strict=True):
            slow.lerp_(fast, 1 - keep)
        for slow, fast in zip(self.ema_router.buffers(), self.router.buffers(), strict=True):
            slow.copy_(fast)  # the price is an average already
