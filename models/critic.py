"""What a cluster's state is worth to the requests to come, and what of their quality no decision has an influence on.

Both are for training alone: a router decides without them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.features import REQUEST_COLUMNS, STATE_COLUMNS, FeatureColumns
from models.impact import GatedMLP


class StateValue(nn.Module):
    """Value of a state: the sum over experts of what each adds, so that it means the same for any number of them.

    Args:
        hidden: width of the hidden layers.
        embedding: width of an encoder's embedding of each expert as it is; 0 for none.

    Shapes:
        - columns: ``read_columns`` of the observation; embedding: (B, N, embedding)
        - output: (B,), 0 before training
    """

    def __init__(self, *, hidden: int = 96, embedding: int = 0) -> None:
        super().__init__()
        self.network = GatedMLP(STATE_COLUMNS, hidden, 1, embedding)

    def forward(self, columns: FeatureColumns, embedding: Tensor | None = None) -> Tensor:
        """(B,) discounted sum of what the requests to come will earn more than usual."""
        return self.network(columns.state, embedding).squeeze(-1).sum(dim=-1)


class ActionIndependentBaseline(nn.Module):
    """Marginal QoS to expect of a request from what is told about it, the engines and the rate of arrivals alone.

    No decision changes any of these, so that it may be subtracted from a reward without changing what is best; and most of
    what rewards differ by is explained by it.

    Args:
        hidden: width of the hidden layers.

    Shapes:
        - columns: ``read_columns`` of the observation
        - output: (B,)
    """

    def __init__(self, *, hidden: int = 64) -> None:
        super().__init__()
        self.experts = nn.Sequential(nn.Linear(REQUEST_COLUMNS, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.pooled = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, columns: FeatureColumns) -> Tensor:
        """(B,) usual quality of the arrived request."""
        experts = self.experts(columns.request)
        return self.pooled(torch.cat([experts.mean(dim=-2), experts.amax(dim=-2)], dim=-1)).squeeze(-1)
