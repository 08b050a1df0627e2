"""The graph encoder of arXiv 2508.00234 from stock parts, for comparison with ``models.han``."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_geometric.nn import HANConv

from models.han import ARRIVED_EDGE, INTO_EXPERT, EdgeType, node_features
from models.han_graph import cluster_graph

_INTO_ARRIVED: EdgeType = ("expert", "to", "arrived")


class PooledHAN(nn.Module):
    """The paper's readout from stock parts: the arrived node after two layers of ``torch_geometric.nn.HANConv``.

    There is one arrived node for a cluster, with the mean over experts of the predictions for each. For comparison only: its
    readout cannot tell which expert is in which state, a mean over neighbours not how many there are, and the weights of the
    edge types depend on what else is in the batch.

    Edges that cannot reach the arrived node within two layers are left out.

    Args:
        expert_features, request_features, arrived_features, hidden, heads: as for ``HANEncoder``.

    Shapes:
        - input: the arrays of ``HANEncoder``
        - output: (B, hidden)
    """

    def __init__(self, expert_features: int, request_features: int, arrived_features: int, hidden: int, heads: int) -> None:
        super().__init__()
        channels = node_features(expert_features, request_features, arrived_features)
        self.first = HANConv(channels, hidden, (list(channels), [*INTO_EXPERT, _INTO_ARRIVED]), heads)
        last: dict[str, int] = {"expert": hidden, "arrived": hidden}
        self.second = HANConv(last, hidden, (list(last), [_INTO_ARRIVED]), heads)

    def forward(
        self,
        experts: Tensor,
        arrived: Tensor,
        running: Tensor,
        running_mask: Tensor,
        waiting: Tensor,
        waiting_mask: Tensor,
    ) -> Tensor:
        """(B, hidden) of each cluster's arrived node."""
        graph = cluster_graph(experts, arrived, running, running_mask, waiting, waiting_mask)
        cluster = graph.batch["expert"]
        inward = torch.stack([torch.arange(len(cluster), device=cluster.device), cluster])
        edges = {edge_type: graph.edge_index[edge_type] for edge_type in INTO_EXPERT}
        x = self.first(graph.x | {"arrived": arrived.mean(dim=1)}, edges | {ARRIVED_EDGE: inward.flip(0), _INTO_ARRIVED: inward})
        return self.second({name: x[name] for name in ("expert", "arrived")}, {_INTO_ARRIVED: inward})["arrived"]
