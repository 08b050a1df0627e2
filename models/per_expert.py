"""A small router: each expert is scored from its own features by one shared network, so any number of experts will do.

The actor adds what it learns to the predicted marginal QoS of each action (the what-if results), and starts as exactly that.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rllib_envs.observation import ARRIVED_FEATURES, CLUSTER_FEATURES, EXPERT_FEATURES, REQUEST_FEATURES
from rllib_envs.sim.whatif import WHATIF_FEATURES

Observation = Mapping[str, Tensor]

MASKED_LOGIT = -1e9
"""Logit of an action that is not possible: its probability is exactly 0 in float32, and logits stay finite."""

FEATURES = (
    *(f"arrived.{name}" for name in ARRIVED_FEATURES),
    *(f"experts.{name}" for name in EXPERT_FEATURES),
    *(f"{group}.{pool}.{name}" for group in ("running", "waiting") for pool in ("sum", "mean") for name in REQUEST_FEATURES),
    *(f"cluster.{name}" for name in CLUSTER_FEATURES),
    *(f"whatif.{name}" for name in WHATIF_FEATURES),
)
"""Columns of ``expert_features``; without what-if results the last ones are missing."""

_MARGINAL_BOUND = 20.0  # no request is worth more than 1; what ruins twenty others need not look worse still
_SUM_SCALE = 1 / 8
_VALUE_SCALE = 10.0  # values are sums over some hundred steps: the output layer would take long to grow to them


class PerExpertPolicy(nn.Module):
    """Logits of the N experts and of drop: ``predicted marginal QoS / temperature + learned residual``.

    The predicted marginal QoS of an expert is ``told_score * own_success + soft_change`` (WHATIF_FEATURES), that of drop is 0; an
    observation without what-if results has none of it. The residual is 0 before training. Permuting the experts permutes their
    logits and leaves that of drop as it is.

    Args:
        whatif: whether observations hold the what-if results.
        hidden: width of the hidden layers.
        temperature: QoS that a difference of 1 in the logits stands for; small means close to greedy.

    Shapes:
        - observation: as ``EdgeRoutingEnv`` describes it, with a leading batch axis B
        - output: (B, N + 1), ``MASKED_LOGIT`` where the action is not possible
    """

    def __init__(self, *, whatif: bool, hidden: int = 64, temperature: float = 0.015) -> None:
        super().__init__()
        self.whatif = whatif
        self.temperature = temperature
        self.encoder = _encoder(whatif, hidden)
        self.expert_head = _zero_linear(hidden)
        self.drop_head = _zero_linear(hidden)

    def forward(self, observation: Observation) -> Tensor:
        """(B, N + 1) masked logits."""
        return self.logits(observation, expert_features(observation))

    def logits(self, observation: Observation, features: Tensor) -> Tensor:
        """``forward`` for a caller that has the ``expert_features`` already."""
        embeddings = self.encoder(features)
        experts = self.expert_head(embeddings).squeeze(-1)
        if self.whatif:
            experts = experts + predicted_marginal(observation) / self.temperature
        drop = self.drop_head(embeddings.mean(dim=-2))
        logits = torch.cat([experts, drop], dim=-1)
        return torch.where(observation["action_mask"] > 0, logits, MASKED_LOGIT)


class PerExpertValue(nn.Module):
    """Value of a state from the mean and the maximum of its experts' embeddings; the order of the experts does not matter.

    Args:
        whatif: whether observations hold the what-if results.
        hidden: width of the hidden layers.

    Shapes:
        - features: (B, N, F), the ``expert_features`` of the observation
        - output: (B,)
    """

    def __init__(self, *, whatif: bool, hidden: int = 64) -> None:
        super().__init__()
        self.encoder = _encoder(whatif, hidden)
        self.head = nn.Linear(2 * hidden, 1)

    def forward(self, features: Tensor) -> Tensor:
        """(B,) expected discounted reward."""
        embeddings = self.encoder(features)
        pooled = torch.cat([embeddings.mean(dim=-2), embeddings.amax(dim=-2)], dim=-1)
        return _VALUE_SCALE * self.head(pooled).squeeze(-1)


def predicted_marginal(observation: Observation) -> Tensor:
    """(B, N) predicted change of the QoS if the request goes to the expert and nobody else arrives."""
    whatif = observation["whatif"]
    told_score = observation["arrived"][..., ARRIVED_FEATURES.index("told_score")]
    own_success = whatif[..., WHATIF_FEATURES.index("own_success")]
    soft_change = whatif[..., WHATIF_FEATURES.index("soft_change")]
    return (told_score * own_success + soft_change).clamp(-_MARGINAL_BOUND, _MARGINAL_BOUND)


def expert_features(observation: Observation) -> Tensor:
    """(B, N, F) FEATURES of each expert, ``x`` as ``sign(x) * log(1 + |x|)`` so that outliers stay tame."""
    experts = observation["experts"]
    cluster = observation["cluster"].unsqueeze(-2).expand(*experts.shape[:-1], -1)
    parts = [
        observation["arrived"],
        experts,
        _pool(observation["running"], observation["running_mask"]),
        _pool(observation["waiting"], observation["waiting_mask"]),
        cluster,
    ]
    if "whatif" in observation:
        parts.append(observation["whatif"])
    features = torch.cat(parts, dim=-1)
    return features.sign() * features.abs().log1p()


def _pool(requests: Tensor, mask: Tensor) -> Tensor:
    """(B, N, slots, R) -> (B, N, 2R): sum and mean over the slots that hold a request."""
    total = (mask.unsqueeze(-2) @ requests).squeeze(-2)
    return torch.cat([total * _SUM_SCALE, total / mask.sum(dim=-1, keepdim=True).clamp(min=1)], dim=-1)


def _encoder(whatif: bool, hidden: int) -> nn.Sequential:
    width = len(FEATURES) - (0 if whatif else len(WHATIF_FEATURES))
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())


def _zero_linear(hidden: int) -> nn.Linear:
    layer = nn.Linear(hidden, 1)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
