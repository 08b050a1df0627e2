"""The critic: the state value for later requests, and an action-independent baseline of their quality.

Both are for training alone; a router decides without them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.features import REQUEST_COLUMNS, STATE_COLUMNS, FeatureColumns
from models.impact import GatedMLP


class StateValue(nn.Module):
    """State value: a sum over experts, so that it applies to any number of them.

    Args:
        hidden: width of the hidden layers.
        embedding: width of an encoder's embedding of each expert without the request; 0 for none.

    Shapes:
        - columns: ``read_columns`` of the observation; embedding: (B, N, embedding)
        - output: (B,), 0 before training
    """

    def __init__(self, *, hidden: int = 96, embedding: int = 0) -> None:
        super().__init__()
        self.network = GatedMLP(STATE_COLUMNS, hidden, 1, embedding)

    def forward(self, columns: FeatureColumns, embedding: Tensor | None = None) -> Tensor:
        """(B,) discounted sum of later requests' rewards above the baseline."""
        return self.network(columns.state, embedding).squeeze(-1).sum(dim=-1)


class ActionIndependentBaseline(nn.Module):
    """Action-independent baseline: expected marginal QoS from a request's predictions, the engines and the arrival rate alone.

    No decision changes any of these. So subtracting it from a reward changes no optimum, and it explains most of the variance of
    rewards.

    Args:
        hidden: width of the hidden layers.
        columns: columns of ``FeatureColumns.request``.

    Shapes:
        - columns: ``read_columns`` of the observation
        - output: (B,)
    """

    def __init__(self, *, hidden: int = 64, columns: int = REQUEST_COLUMNS) -> None:
        super().__init__()
        self.experts = nn.Sequential(nn.Linear(columns, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.pooled = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, columns: FeatureColumns) -> Tensor:
        """(B,) baseline of the arrived request."""
        experts = self.experts(columns.request)
        return self.pooled(torch.cat([experts.mean(dim=-2), experts.amax(dim=-2)], dim=-1)).squeeze(-1)
