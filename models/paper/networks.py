"""The networks of arXiv 2508.00234, for comparison: one embedding of the whole cluster, and an output for each of N actions.

Inputs are the paper's: of an expert its KV use and how many requests run and wait there; of a request its prompt, predicted score
and length, share of the KV memory, tokens so far and latency per token. The embedding is that of the arrived request's node after
two layers of stock heterogeneous graph attention (``models.paper.pooled.PooledHAN``). The number of experts is fixed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.bounds import MASKED_SCORE, MOST_WIDTH
from models.features import Observation
from rllib_envs.errors import InputError
from rllib_envs.sim.rows import ARRIVED_FEATURES, EXPERT_FEATURES, REQUEST_FEATURES

_EXPERT = ("kv_used", "running", "waiting")
_REQUEST = ("prompt", "predicted_score", "predicted_length", "kv_share", "generated", "latency_so_far")


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperSpec:
    """Specification of the paper's networks; the defaults are the paper's."""

    experts: int  # N
    hidden: int = 64
    heads: int = 8
    told_apart: bool = False  # ours: the outputs also read each expert's features and predictions, in the experts' order

    def __post_init__(self) -> None:
        """Refuse invalid sizes.

        Raises:
            InputError: sizes that are not possible or do not go together.
        """
        for name in ("experts", "hidden", "heads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be >= 1")
            if getattr(self, name) > MOST_WIDTH:
                raise InputError(f"{name} = {getattr(self, name)}: must be <= {MOST_WIDTH}")
        if self.hidden % self.heads:
            raise InputError(f"hidden = {self.hidden}, heads = {self.heads}: must be a multiple of heads")

    def to_dict(self) -> dict[str, Any]:
        """For ``PaperSpec(**...)`` and JSON."""
        return asdict(self)


class PaperValues(nn.Module):
    """A value for each of the N experts and for drop, from the embedding of the whole cluster: the paper's critic.

    Args:
        spec: what it is made of.

    Shapes:
        - observation: as ``EdgeRoutingEnv`` describes it, with a leading batch axis B
        - output: (B, N + 1)
    """

    def __init__(self, spec: PaperSpec) -> None:
        from models.paper.pooled import PooledHAN  # here: torch-geometric takes seconds to import

        super().__init__()
        self.spec = spec
        self.encoder = PooledHAN(len(_EXPERT), len(_REQUEST), len(ARRIVED_FEATURES), spec.hidden, spec.heads)
        width = spec.hidden + spec.experts * (len(_EXPERT) + len(ARRIVED_FEATURES)) * spec.told_apart
        self.head = nn.Sequential(nn.Linear(width, spec.hidden), nn.ReLU(), nn.Linear(spec.hidden, spec.experts + 1))

    def forward(self, observation: Observation) -> Tensor:
        """(B, N + 1) values of all actions, possible or not."""
        experts = observation["experts"][..., [EXPERT_FEATURES.index(name) for name in _EXPERT]]
        columns = [REQUEST_FEATURES.index(name) for name in _REQUEST]
        running, waiting = (observation[name][..., columns] for name in ("running", "waiting"))
        masks = (observation["running_mask"], observation["waiting_mask"])
        embedding = self.encoder(experts, observation["arrived"], running, masks[0], waiting, masks[1])
        if self.spec.told_apart:
            own = torch.cat([experts, observation["arrived"]], dim=-1).flatten(start_dim=1)
            embedding = torch.cat([embedding, own], dim=-1)
        return self.head(embedding)


class PaperPolicy(nn.Module):
    """Logits of the N experts and of drop: the paper's actor, ``PaperValues`` with masked actions.

    Args:
        spec: what it is made of.

    Shapes:
        - observation: as ``EdgeRoutingEnv`` describes it, with a leading batch axis B
        - output: (B, N + 1), ``MASKED_SCORE`` where the action is not possible
    """

    def __init__(self, spec: PaperSpec) -> None:
        super().__init__()
        self.spec = spec
        self.values = PaperValues(spec)

    def forward(self, observation: Observation) -> Tensor:
        """(B, N + 1) masked logits.

        Raises:
            InputError: the cluster has another number of experts.
        """
        mask = observation["action_mask"]
        if mask.shape[-1] != self.spec.experts + 1:
            raise InputError(
                f"{mask.shape[-1] - 1} experts: this router was trained for {self.spec.experts} and fits no other number"
            )
        return torch.where(mask > 0, self.values(observation), MASKED_SCORE)
