r"""Heterogeneous graph attention over the requests and experts of a cluster and the arrived request.

The operator is that of the `"Heterogeneous Graph Attention Network" <https://arxiv.org/abs/1903.07293>`_ (Wang et al. 2019), in
two forms with the same parameters. The dense one here is for the padded observation, and the faster one.
``models.han_graph`` is the sparse one for any heterogeneous graph, by PyG's message passing. PyG takes seconds to import, which
a process that routes or samples is spared. ``models.paper.pooled`` is the stock variant for comparison.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rllib_envs.errors import InputError

EdgeType = tuple[str, str, str]

REQUESTS = ("running", "waiting")
ARRIVED_EDGE: EdgeType = ("arrived", "to", "expert")
INTO_EXPERT: tuple[EdgeType, ...] = (*((name, "to", "expert") for name in REQUESTS), ARRIVED_EDGE)
FROM_EXPERT: tuple[EdgeType, ...] = tuple(("expert", "to", source) for source, _, _ in INTO_EXPERT)

SUM_SCALE = 1 / 8
SLOPE = 0.2
_FAR = 1e12  # farther below than any score of finite features in use; the scores of slots without a request go there


class HANLayer(nn.Module):
    r"""The parameters of one layer of heterogeneous graph attention.

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
        super().__init__()
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
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                bound = math.sqrt(6 / (parameter.size(-2) + parameter.size(-1)))
                nn.init.uniform_(parameter, -bound, bound)

    def importance(self, z: Tensor) -> Tensor:
        """(..., hidden) -> (...), the summand of eq. 7."""
        return torch.tanh(self.k_lin(z)) @ self.q[0] if self.semantic else torch.zeros_like(z[..., 0])

    def _edge_parameters(self, *shape: int) -> nn.ParameterDict:
        attended = [edge_type for edge_type in self.edge_types if edge_type not in self.lone]
        return nn.ParameterDict({"__".join(edge_type): nn.Parameter(torch.empty(1, *shape)) for edge_type in attended})


class HANEncoder(nn.Module):
    """Embeddings of each expert without and with the arrived request.

    Both come from the same layers: the first (``without``) on the cluster's graph without the arrived request, the second
    (``with_``) on the graph with it, connected to every expert with the features predicted for that expert (one copy of the
    node for each expert, so that there is one edge to each). Messages of running and waiting requests are computed once for both.

    ``models.han_graph.embed_graph`` gives the same numbers from a graph. Permuting the experts permutes the
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


def node_features(
    expert_features: int, request_features: int, arrived_features: int, requests: Sequence[str] = REQUESTS
) -> dict[str, int]:
    """Node type -> number of features, for an encoder of clusters."""
    return {"expert": expert_features, **dict.fromkeys(requests, request_features), "arrived": arrived_features}


# ``experts`` have an axis V of variants, without and with the arrived request: 1 while they are the same, then 2.


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
    attention = (F.leaky_relu(scores, SLOPE) + far).softmax(dim=-1)
    pooling = torch.cat([attention.flatten(2, 3), SUM_SCALE * mask.unsqueeze(2)], dim=2)
    pooled = pooling @ requests  # (B, N, V * heads + 1, R)
    averages = pooled[:, :, :-1].unflatten(2, (-1, layer.heads)).flatten(3).transpose(1, 2)
    count = mask.sum(dim=-1, keepdim=True)
    more = torch.cat([pooled[:, :, -1], count, count.log1p()], dim=-1)
    gain = layer.sum_gain[key]
    from_more = torch.cat([gain.T * proj.weight, SUM_SCALE * (gain * proj.bias).T, layer.degree_gain[key].T], dim=1)
    message = F.linear(averages, _per_head(proj.weight, layer.heads), proj.bias) * count.clamp(max=1).unsqueeze(1)
    return message + F.linear(more, from_more).unsqueeze(1)


def _per_head(weight: Tensor, heads: int) -> Tensor:
    """(hidden, heads * features): the projection of features that every head has averaged for itself."""
    own = torch.eye(heads, dtype=weight.dtype, device=weight.device)[:, None, :, None]
    return (own * weight.unflatten(0, (heads, -1)).unsqueeze(2)).flatten(2).flatten(0, 1)
