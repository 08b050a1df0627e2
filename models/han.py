r"""Heterogeneous graph attention over the requests and experts of a cluster and the arrived request.

The operator is that of the `"Heterogeneous Graph Attention Network" <https://arxiv.org/abs/1903.07293>`_ (Wang et al. 2019), in
two forms with the same parameters: a sparse one for any heterogeneous graph (``HANLayer``, PyG message passing) and a dense one
for the padded observation (``HANEncoder.forward``), which is faster.
``models.paper.pooled`` is the stock variant for comparison.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import MessagePassing
from torch_geometric.nn.inits import glorot, zeros
from torch_geometric.utils import degree, scatter, softmax

from rllib_envs.errors import InputError

EdgeType = tuple[str, str, str]

REQUESTS = ("running", "waiting")
ARRIVED_EDGE: EdgeType = ("arrived", "to", "expert")
INTO_EXPERT: tuple[EdgeType, ...] = (*((name, "to", "expert") for name in REQUESTS), ARRIVED_EDGE)
FROM_EXPERT: tuple[EdgeType, ...] = tuple(("expert", "to", source) for source, _, _ in INTO_EXPERT)

_SUM_SCALE = 1 / 8
_SLOPE = 0.2
_FAR = 1e12  # farther below than any score of finite features in use; the scores of slots without a request go there

_T = TypeVar("_T")


class ClusterGraph(NamedTuple):
    """G clusters as one sparse graph whose components are the clusters' experts with what is connected to them."""

    x: dict[str, Tensor]  # node type -> (nodes, features)
    edge_index: dict[EdgeType, Tensor]  # edge type -> (2, edges) of source and destination node
    batch: dict[str, Tensor]  # node type -> (nodes,) cluster that each belongs to


class HANLayer(MessagePassing):
    r"""One layer of heterogeneous graph attention.

    With :math:`W_{\phi_i}` of the type of node :math:`i`, for every edge type :math:`\Phi` (a meta-path of length one) into it
    and each of K heads:

    .. math::
        h_i &= W_{\phi_i} x_i + b_{\phi_i} && (1) \\
        e^\Phi_{ij} &= \mathrm{LeakyReLU}(a^\Phi_{src} \cdot h_j + a^\Phi_{dst} \cdot h_i), \quad
        \alpha^\Phi_{ij} = \mathrm{softmax}_{j \in N^\Phi_i} e^\Phi_{ij} && (2, 3) \\
        z^\Phi_i &= \sigma \Big( \big\Vert_{k=1}^K \sum_j \alpha^\Phi_{ij} h_j
        + s^\Phi \odot \tfrac18 \sum_j h_j + d^\Phi \log(1 + |N^\Phi_i|) \Big) && (4, 5; s, d: ours) \\
        w^\Phi &= \frac1{|V|} \sum_{i \in V} q \cdot \tanh(W z^\Phi_i + b), \quad
        \beta^\Phi = \mathrm{softmax}_\Phi w^\Phi && (7, 8) \\
        x'_i &= \sum_\Phi \beta^\Phi z^\Phi_i + h_i && (6, 9; + h_i: ours)

    What differs from the paper, and why:

    - :math:`+ h_i`: a node is not among its own neighbours here, and would otherwise lose its own features.
    - :math:`s, d`: a softmax is a mean: it cannot tell one request from ten like it.
    - :math:`V` in (7) holds the nodes of the destination's type in the SAME graph. ``torch_geometric.nn.HANConv`` takes all nodes
      of the call, so that a state in a batch and alone have different embeddings. Still, a graph's weights depend on all its
      nodes: what happens at one expert moves the embeddings of the others a little.
    - Edge types without an edge take part with :math:`z = \sigma(0) = 0`, as in HANConv.

    :math:`\sigma`, which the paper leaves open, is ReLU as in HANConv.

    Args:
        channels: features of each node type.
        hidden: width of the output, a multiple of ``heads``.
        edge_types: edge types into the nodes that are to be updated.
        heads: number K of attention heads.
        lone: edge types of which no node has more than one: there is nothing to attend to and nothing to count, so that they have
            no parameters and :math:`z^\Phi_i = \sigma(h_j)`.
        semantic: without, the edge types count alike, :math:`w^\Phi = 0`.
        plain: leave out s, d and + h_i: on one graph this is HANConv, and its ``state_dict`` fits.

    Shapes:
        - x: node type -> (nodes, channels of the type); edge_index: edge type -> (2, edges); batch: node type -> (nodes,)
        - output: destination type -> (nodes, hidden)

    Raises:
        InputError: hidden is no multiple of heads.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        hidden: int,
        edge_types: Sequence[EdgeType],
        heads: int,
        *,
        lone: Collection[EdgeType] = (),
        semantic: bool = True,
        plain: bool = False,
    ) -> None:
        super().__init__(aggr="add", node_dim=0)
        if heads < 1 or hidden < 1 or hidden % heads:
            raise InputError(f"hidden = {hidden}, heads = {heads}: hidden must be a positive multiple of heads")
        self.hidden, self.heads, self.semantic, self.plain = hidden, heads, semantic, plain
        self.edge_types, self.lone = tuple(edge_types), frozenset(lone)
        self.proj = nn.ModuleDict({name: nn.Linear(width, hidden) for name, width in channels.items()})
        self.lin_src = self._edge_parameters(heads, hidden // heads)
        self.lin_dst = self._edge_parameters(heads, hidden // heads)
        if semantic:
            self.k_lin = nn.Linear(hidden, hidden)
            self.q = nn.Parameter(torch.empty(1, hidden))
        if not plain:
            self.sum_gain = self._edge_parameters(hidden)
            self.degree_gain = self._edge_parameters(hidden)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the parameters from torch's generator: Glorot, biases 0."""
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            (zeros if name.endswith("bias") else glorot)(parameter)

    def forward(
        self, x: Mapping[str, Tensor], edge_index: Mapping[EdgeType, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Updated nodes of every type that edges lead to."""
        h = self.project(x)
        return self.combine(h, self.messages(h, edge_index), batch)

    def project(self, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Eq. 1."""
        return {name: self.proj[name](x[name]) for name in self.proj}

    def messages(self, h: Mapping[str, Tensor], edge_index: Mapping[EdgeType, Tensor]) -> dict[EdgeType, Tensor]:
        """Eq. 2-5: (destination nodes, hidden) of each of the layer's edge types that is in ``edge_index``."""
        return {
            edge_type: self._message(edge_type, h, edge_index[edge_type])
            for edge_type in self.edge_types
            if edge_type in edge_index
        }

    def combine(
        self, h: Mapping[str, Tensor], messages: Mapping[EdgeType, Tensor], batch: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Eq. 6-9."""
        out: dict[str, Tensor] = {}
        for name in dict.fromkeys(target for _, _, target in messages):
            z = torch.stack([message for (_, _, target), message in messages.items() if target == name])
            importance = scatter(self.importance(z), batch[name], dim=1, reduce="mean")  # (edge types, graphs)
            weights = importance.softmax(dim=0)[:, batch[name]]
            mixed = (weights.unsqueeze(-1) * z).sum(dim=0)
            out[name] = mixed if self.plain else mixed + h[name]
        return out

    def importance(self, z: Tensor) -> Tensor:
        """(..., hidden) -> (...), the summand of eq. 7."""
        return torch.tanh(self.k_lin(z)) @ self.q[0] if self.semantic else torch.zeros_like(z[..., 0])

    def message(  # pyright: ignore[reportIncompatibleMethodOverride] (PyG reads the names of the arguments)
        self, x_j: Tensor, alpha_i: Tensor, alpha_j: Tensor, index: Tensor, size_i: int | None
    ) -> Tensor:
        """(edges, parts, hidden): the attended neighbour and, unless plain, the neighbour."""
        score = F.leaky_relu(alpha_j + alpha_i, _SLOPE)
        attended = softmax(score, index, num_nodes=size_i).unsqueeze(-1) * x_j
        parts = [attended] if self.plain else [attended, x_j]
        return torch.stack([part.flatten(1) for part in parts], dim=1)

    def _message(self, edge_type: EdgeType, h: Mapping[str, Tensor], edge_index: Tensor) -> Tensor:
        source, _, target = edge_type
        if edge_type in self.lone:
            return F.relu(scatter(h[source][edge_index[0]], edge_index[1], dim_size=len(h[target]), reduce="sum"))
        key = "__".join(edge_type)
        ends = tuple(h[name].unflatten(-1, (self.heads, -1)) for name in (source, target))
        alpha = (ends[0] * self.lin_src[key]).sum(dim=-1), (ends[1] * self.lin_dst[key]).sum(dim=-1)
        parts = self.propagate(edge_index, x=ends, alpha=alpha, size=(len(ends[0]), len(ends[1])))
        if self.plain:
            return F.relu(parts[:, 0])
        neighbours = degree(edge_index[1], len(ends[1]), dtype=parts.dtype).unsqueeze(-1)
        more = self.sum_gain[key] * _SUM_SCALE * parts[:, 1] + self.degree_gain[key] * neighbours.log1p()
        return F.relu(parts[:, 0] + more)

    def _edge_parameters(self, *shape: int) -> nn.ParameterDict:
        attended = [edge_type for edge_type in self.edge_types if edge_type not in self.lone]
        return nn.ParameterDict({"__".join(edge_type): nn.Parameter(torch.empty(1, *shape)) for edge_type in attended})


class HANEncoder(nn.Module):
    """Embeddings of each expert without and with the arrived request.

    Both come from the same layers: the first (``without``) on the cluster's graph without the arrived request, the second
    (``with_``) on the graph with it, connected to every expert with the features predicted for that expert (one copy of the
    node for each expert, so that there is one edge to each). Messages of running and waiting requests are computed once for both.

    ``forward`` takes the padded arrays, ``sparse`` the graph; the numbers are the same. Permuting the experts permutes the
    embeddings; permuting the requests of an expert, or padding, changes nothing. Between experts there is nothing but the
    weights of the edge types, which are those of the whole cluster (``HANLayer``).

    Args:
        expert_features: features of an expert.
        request_features: features of a running or waiting request.
        arrived_features: features of the arrived request as predicted for one expert.
        hidden: width of the embeddings.
        heads: attention heads.
        layers: 1, or 2: then requests learn about their expert before it attends to them. With 1, a request reaches its expert
            by an average and a sum of its features only; with 2, by features that nonlinearly depend on the expert's, at three to
            five times the cost.
        requests: which kinds of requests have edges to their experts; the others are not seen.
        semantic: whether semantic attention weights the edge types; otherwise they count alike.

    Shapes:
        - experts: (B, N, expert_features), arrived: (B, N, arrived_features)
        - running, waiting: (B, N, slots, request_features), any finite values where the mask is 0
        - running_mask, waiting_mask: (B, N, slots), 1 where there is a request
        - expert_mask: (B, N), 0 where an expert is padding; None if none is
        - output: two of (B, N, hidden)

    Raises:
        InputError: layers is neither 1 nor 2, or hidden no multiple of heads.
    """

    def __init__(
        self,
        expert_features: int,
        request_features: int,
        arrived_features: int,
        hidden: int,
        heads: int,
        layers: int = 1,
        *,
        requests: Sequence[str] = REQUESTS,
        semantic: bool = True,
    ) -> None:
        super().__init__()
        if layers not in (1, 2):
            raise InputError(f"layers = {layers}: must be 1 or 2")
        self.requests = tuple(requests)
        channels = node_features(expert_features, request_features, arrived_features, self.requests)
        inward = tuple((name, "to", "expert") for name in (*self.requests, "arrived"))
        outward = tuple(("expert", "to", name) for name, _, _ in inward) if layers == 2 else ()
        lone = (ARRIVED_EDGE, *outward)
        self.first = HANLayer(channels, hidden, inward + outward, heads, lone=lone, semantic=semantic)
        wide = dict.fromkeys(channels, hidden)
        self.second = HANLayer(wide, hidden, inward, heads, lone=lone, semantic=semantic) if layers == 2 else None

    def forward(
        self,
        experts: Tensor,
        arrived: Tensor,
        running: Tensor,
        running_mask: Tensor,
        waiting: Tensor,
        waiting_mask: Tensor,
        expert_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """(B, N, hidden) of each expert without and with the arrived request."""
        shown = {"running": (running, running_mask), "waiting": (waiting, waiting_mask)}
        masks = {name: shown[name][1] for name in self.requests}
        x = {"expert": experts.unsqueeze(1), **{name: shown[name][0] for name in self.requests}, "arrived": arrived}
        out = _dense_experts(self.first, x, masks, expert_mask)
        if self.second is not None:
            x = {name: F.relu(y) for name, y in (_dense_leaves(self.first, x) | {"expert": out}).items()}
            out = _dense_experts(self.second, x, masks, expert_mask)
        without, with_ = out.unbind(dim=1)
        return without, with_

    def sparse(self, graph: ClusterGraph) -> tuple[Tensor, Tensor]:
        """(experts, hidden) of each expert of a graph of clusters without and with the arrived request."""
        h = self.first.project(graph.x)
        messages = self.first.messages(h, graph.edge_index)
        with_ = self.first.combine(h, messages, graph.batch)
        without = with_ | self.first.combine(h, _before(messages), graph.batch)
        if self.second is not None:
            before, after = ({name: F.relu(y) for name, y in x.items()} for x in (without, with_))
            without = self.second(before, _before(graph.edge_index), graph.batch)
            with_ = self.second(after, graph.edge_index, graph.batch)
        return without["expert"], with_["expert"]


def node_features(
    expert_features: int, request_features: int, arrived_features: int, requests: Sequence[str] = REQUESTS
) -> dict[str, int]:
    """Node type -> number of features, for an encoder of clusters."""
    return {"expert": expert_features, **dict.fromkeys(requests, request_features), "arrived": arrived_features}


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


def _before(by_edge_type: Mapping[EdgeType, _T]) -> dict[EdgeType, _T]:
    """All but the edges from the arrived request to the experts."""
    return {edge_type: value for edge_type, value in by_edge_type.items() if edge_type != ARRIVED_EDGE}


# The dense form. ``experts`` have an axis V of variants, without and with the arrived request: 1 while they are the same, then 2.


def _dense_experts(layer: HANLayer, x: Mapping[str, Tensor], masks: Mapping[str, Tensor], expert_mask: Tensor | None) -> Tensor:
    """(B, 2, N, hidden): the experts of both variants, from experts (B, V, N, F), requests (B, N, S, R) and arrived (B, N, A)."""
    own = layer.proj["expert"](x["expert"])
    messages = [_attend(layer, (name, "to", "expert"), own, x[name], mask) for name, mask in masks.items()]
    newcomer = layer.proj["arrived"](x["arrived"]).unsqueeze(1).expand_as(own)
    z = F.relu(torch.stack([*messages, newcomer], dim=2))  # (B, V, edge types, N, hidden)
    importance = layer.importance(z)
    if expert_mask is None:
        importance = importance.mean(dim=-1)
    else:
        real = (expert_mask > 0).to(z.dtype)[:, None, None]
        importance = (importance * real).sum(dim=-1) / real.sum(dim=-1).clamp(min=1)
    batch, variants, types, n, hidden = z.shape
    absent = z.new_tensor([[*[0.0] * (types - 1), -torch.inf], [0.0] * types])  # without the arrived request, and with it
    weights = (importance + absent).softmax(dim=-1)  # (B, 2, edge types)
    mixed = weights.view(batch, variants, -1, types) @ z.flatten(3)
    return mixed.view(batch, 2, n, hidden) + own


def _dense_leaves(layer: HANLayer, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Requests and arrived copies, (..., hidden), once their expert, the only neighbour of each, has told them about itself."""
    told = F.relu(layer.proj["expert"](x["expert"].squeeze(1)))
    requests = {name: layer.proj[name](x[name]) + told.unsqueeze(2) for name in x if name in REQUESTS}
    return requests | {"arrived": layer.proj["arrived"](x["arrived"]) + told}


def _attend(layer: HANLayer, edge_type: EdgeType, experts: Tensor, requests: Tensor, mask: Tensor) -> Tensor:
    """(B, V, N, hidden) message, before the activation, of requests (B, N, S, R) to their experts, (B, V, N, hidden) projected.

    Scores and messages are linear in the requests' features: so these are scored and averaged first and projected afterwards,
    which never makes S vectors of the hidden width.
    """
    key = "__".join(edge_type)
    proj = cast(nn.Linear, layer.proj[edge_type[0]])
    weight, bias = (parameter.unflatten(0, (layer.heads, -1)) for parameter in (proj.weight, proj.bias))
    to_score = torch.einsum("kd,kdr->kr", layer.lin_src[key][0], weight)
    target = (experts.unflatten(-1, (layer.heads, -1)) * layer.lin_dst[key]).sum(dim=-1).transpose(1, 2)
    target = target + (layer.lin_src[key][0] * bias).sum(dim=-1)  # (B, N, V, heads)
    scores = (to_score @ requests.transpose(-1, -2)).unsqueeze(2) + target.unsqueeze(-1)  # (B, N, V, heads, S)
    far = ((mask - 1) * _FAR)[:, :, None, None]
    attention = (F.leaky_relu(scores, _SLOPE) + far).softmax(dim=-1)
    pooling = torch.cat([attention.flatten(2, 3), _SUM_SCALE * mask.unsqueeze(2)], dim=2)
    pooled = pooling @ requests  # (B, N, V * heads + 1, R)
    averages = pooled[:, :, :-1].unflatten(2, (-1, layer.heads)).flatten(3).transpose(1, 2)
    count = mask.sum(dim=-1, keepdim=True)
    more = torch.cat([pooled[:, :, -1], count, count.log1p()], dim=-1)
    gain = layer.sum_gain[key]
    from_more = torch.cat([gain.T * proj.weight, _SUM_SCALE * (gain * proj.bias).T, layer.degree_gain[key].T], dim=1)
    message = F.linear(averages, _per_head(proj.weight, layer.heads), proj.bias) * count.clamp(max=1).unsqueeze(1)
    return message + F.linear(more, from_more).unsqueeze(1)


def _per_head(weight: Tensor, heads: int) -> Tensor:
    """(hidden, heads * features): the projection of features that every head has averaged for itself."""
    own = torch.eye(heads, dtype=weight.dtype, device=weight.device)[:, None, :, None]
    return (own * weight.unflatten(0, (heads, -1)).unsqueeze(2)).flatten(2).flatten(0, 1)
