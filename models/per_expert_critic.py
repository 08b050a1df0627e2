"""Values of sending the request to each expert, and of dropping it; any number of experts will do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.per_expert import FEATURES, Observation, predicted_marginal
from rllib_envs.sim.whatif import WHATIF_FEATURES


class PerExpertCritic(nn.Module):
    """Action values ``Q(s, e) = predicted marginal QoS of e + learned residual``, that of drop with a prediction of 0.

    The residual of an expert comes from its own embedding and the mean and the maximum over experts, that of drop from the
    latter two: permuting the experts permutes their values. Residuals are 0 before training, so that an untrained critic ranks
    actions as ``models.per_expert.PerExpertPolicy`` does. An observation without what-if results has no predictions.

    Args:
        whatif: whether observations hold the what-if results.
        hidden: width of the hidden layers.

    Shapes:
        - features: (B, N, F), the ``expert_features`` of the observation
        - output: (B, N + 1)
    """

    def __init__(self, *, whatif: bool, hidden: int = 64) -> None:
        super().__init__()
        self.whatif = whatif
        width = len(FEATURES) - (0 if whatif else len(WHATIF_FEATURES))
        self.encoder = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.expert_head = nn.Sequential(nn.Linear(3 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.drop_head = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        for head in (self.expert_head, self.drop_head):
            last = head[-1]
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, observation: Observation, features: Tensor) -> Tensor:
        """(B, N + 1) action values."""
        embeddings = self.encoder(features)
        pooled = torch.cat([embeddings.mean(dim=-2), embeddings.amax(dim=-2)], dim=-1)
        everywhere = pooled.unsqueeze(-2).expand(*embeddings.shape[:-1], -1)
        experts = self.expert_head(torch.cat([embeddings, everywhere], dim=-1)).squeeze(-1)
        if self.whatif:
            experts = experts + predicted_marginal(observation)
        return torch.cat([experts, self.drop_head(pooled)], dim=-1)
