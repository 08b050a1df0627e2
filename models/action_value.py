"""Action values of sending the request to each expert and of dropping it, for any number of experts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.features import CHOICE_COLUMNS, FeatureColumns
from models.impact import zero_linear


class ActionValue(nn.Module):
    """Action values ``Q(s, e) = prior of e + learned state value + learned residual``, that of drop with a prior of 0.

    The prior is the predicted marginal QoS unless it is given. The state value is common to all actions: their differences need
    not learn it. The residual of an expert comes from its own columns and from the mean and maximum over experts; that of drop
    and the state value come from the latter two. Permuting the experts permutes their values. What is learned is 0 before
    training, so that an untrained critic ranks actions by the prior. An observation without what-if results has no predictions.

    Args:
        hidden: width of the hidden layers.
        columns: columns of ``FeatureColumns.choice``.
        embedding: width of an encoder's embedding of each choice; 0 for none.

    Shapes:
        - columns: ``read_columns`` of the observation; embedding: (B, N, embedding); prior: (B, N)
        - output: (B, N + 1)
    """

    def __init__(self, *, hidden: int = 96, columns: int = CHOICE_COLUMNS, embedding: int = 0) -> None:
        super().__init__()
        width = columns + embedding
        self.encoder = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.expert_head = nn.Sequential(nn.Linear(3 * hidden, hidden), nn.ReLU(), zero_linear(hidden, 1))
        self.drop_head = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), zero_linear(hidden, 1))
        self.state_head = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), zero_linear(hidden, 1))

    def forward(self, columns: FeatureColumns, embedding: Tensor | None = None, prior: Tensor | None = None) -> Tensor:
        """(B, N + 1) action values."""
        choice = columns.choice if embedding is None else torch.cat([columns.choice, embedding], dim=-1)
        embeddings = self.encoder(choice)
        pooled = torch.cat([embeddings.mean(dim=-2), embeddings.amax(dim=-2)], dim=-1)
        everywhere = pooled.unsqueeze(-2).expand(*embeddings.shape[:-1], -1)
        experts = self.expert_head(torch.cat([embeddings, everywhere], dim=-1)).squeeze(-1)
        values = torch.cat([experts + (columns.marginal if prior is None else prior), self.drop_head(pooled)], dim=-1)
        return values + self.state_head(pooled)
