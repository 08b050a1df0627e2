"""The sparse form of ``models.han``: the same layers on any heterogeneous graph, by PyG's message passing.

It is the reference for the dense form, and the graph of ``models.paper.pooled``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import degree, scatter, softmax

from models.han import ARRIVED_EDGE, SLOPE, SUM_SCALE, EdgeType, HANEncoder, HANLayer

_T = TypeVar("_T")


class ClusterGraph(NamedTuple):
    """G clusters as one sparse graph whose components are the clusters' experts with what is connected to them."""

    x: dict[str, Tensor]  # node type -> (nodes, features)
    edge_index: dict[EdgeType, Tensor]  # edge type -> (2, edges) of source and destination node
    batch: dict[str, Tensor]  # node type -> (nodes,) cluster that each belongs to


def cluster_graph(
    experts: Tensor,
    arrived: Tensor,
    running: Tensor,
    running_mask: Tensor,
    waiting: Tensor,
    waiting_mask: Tensor,
    expert_mask: Tensor | None = None,
) -> ClusterGraph:
    """Convert the arrays of ``HANEncoder`` to a sparse graph, without masked entries.

    Edges go both ways. Experts, and arrived requests, of which there is one for each expert, are in the order of the arrays'
    (B, N), requests in that of (B, N, slots).
    """
    present = torch.ones_like(experts[..., 0]) if expert_mask is None else expert_mask
    real = present > 0
    cluster = torch.arange(len(experts), device=experts.device).unsqueeze(-1).expand_as(real)[real]
    number = real.flatten().cumsum(0).view_as(real) - 1
    x, edges, batch = {"expert": experts[real]}, {}, {"expert": cluster}
    leaves = {"arrived": (arrived.unsqueeze(2), present.unsqueeze(2)), "running": (running, running_mask)}
    for name, (features, mask) in (leaves | {"waiting": (waiting, waiting_mask)}).items():
        there = (mask > 0) & real.unsqueeze(-1)
        x[name] = features[there]
        owner = number.unsqueeze(-1).expand_as(there)[there]
        batch[name] = cluster[owner]
        index = torch.stack([torch.arange(len(owner), device=owner.device), owner])
        edges[name, "to", "expert"], edges["expert", "to", name] = index, index.flip(0)
    return ClusterGraph(x, edges, batch)


def embed_graph(encoder: HANEncoder, graph: ClusterGraph) -> tuple[Tensor, Tensor]:
    """(experts, hidden) of each expert of a graph of clusters without and with the arrived request."""
    h = _project(encoder.first, graph.x)
    messages = _messages(encoder.first, h, graph.edge_index)
    with_ = _combine(encoder.first, h, messages, graph.batch)
    without = with_ | _combine(encoder.first, h, _before(messages), graph.batch)
    if encoder.second is not None:
        before, after = ({name: F.relu(y) for name, y in x.items()} for x in (without, with_))
        without = update_nodes(encoder.second, before, _before(graph.edge_index), graph.batch)
        with_ = update_nodes(encoder.second, after, graph.edge_index, graph.batch)
    return without["expert"], with_["expert"]


def update_nodes(
    layer: HANLayer, x: Mapping[str, Tensor], edge_index: Mapping[EdgeType, Tensor], batch: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Update the nodes of every type that edges lead to.

    Args:
        layer: the parameters
        x: node type -> (nodes, channels of the type)
        edge_index: edge type -> (2, edges); the layer's edge types that are missing take no part.
        batch: node type -> (nodes,) graph that each belongs to

    Returns:
        Destination type -> (nodes, hidden).
    """
    h = _project(layer, x)
    return _combine(layer, h, _messages(layer, h, edge_index), batch)


class _Attention(MessagePassing):
    """Eq. 2-4 of ``HANLayer`` for one edge type: the attended neighbours and, unless plain, all of them."""

    def __init__(self, *, plain: bool) -> None:
        super().__init__(aggr="add", node_dim=0)
        self.plain = plain

    def forward(self, ends: tuple[Tensor, Tensor], alpha: tuple[Tensor, Tensor], edge_index: Tensor) -> Tensor:
        """(destinations, parts, hidden) from projected nodes (nodes, heads, width) and scores (nodes, heads) of both ends."""
        return self.propagate(edge_index, x=ends, alpha=alpha, size=(len(ends[0]), len(ends[1])))

    def message(  # pyright: ignore[reportIncompatibleMethodOverride] (PyG reads the names of the arguments)
        self, x_j: Tensor, alpha_i: Tensor, alpha_j: Tensor, index: Tensor, size_i: int | None
    ) -> Tensor:
        """(edges, parts, hidden) from each neighbour."""
        score = F.leaky_relu(alpha_j + alpha_i, SLOPE)
        attended = softmax(score, index, num_nodes=size_i).unsqueeze(-1) * x_j
        parts = [attended] if self.plain else [attended, x_j]
        return torch.stack([part.flatten(1) for part in parts], dim=1)


def _project(layer: HANLayer, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Eq. 1."""
    return {name: projection(x[name]) for name, projection in layer.proj.items()}


def _messages(layer: HANLayer, h: Mapping[str, Tensor], edge_index: Mapping[EdgeType, Tensor]) -> dict[EdgeType, Tensor]:
    """Eq. 2-5: (destination nodes, hidden) of each of the layer's edge types that is in ``edge_index``."""
    return {
        edge_type: _message(layer, edge_type, h, edge_index[edge_type])
        for edge_type in layer.edge_types
        if edge_type in edge_index
    }


def _message(layer: HANLayer, edge_type: EdgeType, h: Mapping[str, Tensor], edge_index: Tensor) -> Tensor:
    source, _, target = edge_type
    if edge_type in layer.lone:
        return F.relu(scatter(h[source][edge_index[0]], edge_index[1], dim_size=len(h[target]), reduce="sum"))
    key = "__".join(edge_type)
    ends = h[source].unflatten(-1, (layer.heads, -1)), h[target].unflatten(-1, (layer.heads, -1))
    alpha = (ends[0] * layer.lin_src[key]).sum(dim=-1), (ends[1] * layer.lin_dst[key]).sum(dim=-1)
    parts = _Attention(plain=layer.plain)(ends, alpha, edge_index)
    if layer.plain:
        return F.relu(parts[:, 0])
    neighbours = degree(edge_index[1], len(ends[1]), dtype=parts.dtype).unsqueeze(-1)
    more = layer.sum_gain[key] * SUM_SCALE * parts[:, 1] + layer.degree_gain[key] * neighbours.log1p()
    return F.relu(parts[:, 0] + more)


def _combine(
    layer: HANLayer, h: Mapping[str, Tensor], messages: Mapping[EdgeType, Tensor], batch: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Eq. 6-9."""
    out: dict[str, Tensor] = {}
    for name in dict.fromkeys(target for _, _, target in messages):
        z = torch.stack([message for (_, _, target), message in messages.items() if target == name])
        importance = scatter(layer.importance(z), batch[name], dim=1, reduce="mean")  # (edge types, graphs)
        weights = importance.softmax(dim=0)[:, batch[name]]
        mixed = (weights.unsqueeze(-1) * z).sum(dim=0)
        out[name] = mixed if layer.plain else mixed + h[name]
    return out


def _before(by_edge_type: Mapping[EdgeType, _T]) -> dict[EdgeType, _T]:
    """All but the edges from the arrived request to the experts."""
    return {edge_type: value for edge_type, value in by_edge_type.items() if edge_type != ARRIVED_EDGE}
