"""The router: encoder, impact estimator and per-expert heads, one score for each action. Needs no RL library."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from models.bounds import MASKED_SCORE, MOST_WIDTH
from models.features import (
    CHOICE_COLUMNS,
    INFORMATION_COLUMNS,
    PLACE_COLUMNS,
    REQUEST_COLUMNS,
    FeatureColumns,
    Observation,
    predicted_marginal,
    read_columns,
    squash,
)
from models.impact import Explanation, GatedMLP, ImpactEstimator
from models.price import Price
from models.relative_price import RelativePrice
from rllib_envs.errors import InputError
from rllib_envs.sim.rows import ARRIVED_FEATURES, CLUSTER_FEATURES, EXPERT_FEATURES, REQUEST_FEATURES

if TYPE_CHECKING:
    from models.han import HANEncoder
    from models.paper.pooled import PooledHAN

EncoderName = Literal["han", "aggregates", "pooled"]
EdgesName = Literal["all", "running", "waiting"]
PriceName = Literal["absolute", "relative"]

_PRICE_LOG_BOUND = 2.0
_WIDEST = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSpec:
    """Specification of a router's network; it determines the shapes of the weights."""

    encoder: EncoderName = "han"
    """aggregates: sums over the requests of each expert. han: also heterogeneous graph attention over all requests, as a branch
    beside them. pooled: the paper's readout, one embedding of the whole cluster from stock HANConv layers."""
    graph_hidden: int = 32
    """Width of the graph's embeddings."""
    heads: int = 4
    """Attention heads."""
    layers: int = 1
    """Layers of the graph encoder, 1 or 2."""
    edges: EdgesName = "all"
    """Requests with edges to their experts in the graph: all, the running or the waiting ones. The arrived one always has."""
    semantic: bool = True
    """Weigh the graph's edge types by semantic attention; otherwise all count alike."""
    hidden: int = 96
    """Width of the hidden layers of the heads; 0: none, the future part of the scores is the price alone."""
    impact_hidden: int = 128
    """Width of the hidden layers of the impact estimator's correction; 0: no correction."""
    impact: bool = True
    """Observations hold the roll-out's results, and scores start from them. Without, the router learns all of the impact."""
    future: bool = True
    """Scores have a learned part for the opportunity cost of a decision."""
    price: PriceName = "absolute"
    """Price of congestion that the future part starts from. absolute: by the engines' own figures, for clusters like those of
    training. relative: in proportion to the cluster's means, for any cluster; observations say what late requests need."""
    drop: bool = True
    """Allow the router to drop a request that some expert could take."""
    bounded: bool = False
    """What networks add to impact and price fades out beyond the inputs of training. Then the router is impact-greedy with a
    price. A router without impact has nothing to fall back on, so there it counts as False."""
    information: bool = False
    """Observations say what predictions are worth, and scores depend on it: one router then suits many predictors."""
    places: bool = False
    """Observations say how far each expert is from the user, and scores depend on it."""

    def __post_init__(self) -> None:
        """Refuse invalid specifications.

        Raises:
            InputError: unknown encoder, or sizes that do not go together.
        """
        if self.encoder not in get_args(EncoderName):
            raise InputError(f"encoder = {self.encoder!r}: allowed are {', '.join(get_args(EncoderName))}")
        if self.edges not in get_args(EdgesName):
            raise InputError(f"edges = {self.edges!r}: allowed are {', '.join(get_args(EdgesName))}")
        if self.price not in get_args(PriceName):
            raise InputError(f"price = {self.price!r}: allowed are {', '.join(get_args(PriceName))}")
        for name, least in (("graph_hidden", 1), ("heads", 1), ("hidden", 0), ("impact_hidden", 0)):
            if not least <= getattr(self, name) <= _WIDEST:
                raise InputError(f"{name} = {getattr(self, name)}: must be from {least} to {_WIDEST}")
            if getattr(self, name) > MOST_WIDTH:
                raise InputError(f"{name} = {getattr(self, name)}: must be <= {MOST_WIDTH}")
        if self.graph_hidden % self.heads:
            raise InputError(f"graph_hidden = {self.graph_hidden}, heads = {self.heads}: must be a multiple of heads")
        if self.layers not in (1, 2):
            raise InputError(f"layers = {self.layers}: must be 1 or 2")

    def to_dict(self) -> dict[str, Any]:
        """For ``RouterSpec(**...)`` and JSON."""
        return asdict(self)

    @property
    def demand(self) -> bool:
        """Whether observations must say what late requests need."""
        return self.future and self.price == "relative"

    @property
    def choice_columns(self) -> int:
        """Columns of ``FeatureColumns.choice``."""
        return CHOICE_COLUMNS + INFORMATION_COLUMNS * self.information + PLACE_COLUMNS * self.places

    @property
    def request_columns(self) -> int:
        """Columns of ``FeatureColumns.request``."""
        return REQUEST_COLUMNS + INFORMATION_COLUMNS * self.information + PLACE_COLUMNS * self.places


def check_observation(spec: RouterSpec, parts: Container[str]) -> None:
    """Check that an observation has the router's inputs. Without what-if results every request would be dropped.

    Args:
        spec: the router's specification.
        parts: names of the observation's parts.

    Raises:
        InputError: the what-if results or what late requests need are missing. Or what predictions are worth, or how far experts
            are, is missing or there unwanted.
    """
    if spec.impact and "whatif" not in parts:
        raise InputError(
            "observation.whatif = False: a router with impact = True needs the what-if results: set observation.whatif, or build "
            "it with impact = False, to learn without them"
        )
    for name in ("information", "places"):
        wanted = getattr(spec, name)
        if wanted != (name in parts):
            raise InputError(f"observation.{name} = {name in parts}: it must be as in the router, whose {name} = {wanted}")
    if spec.demand and "demand" not in parts:
        raise InputError("observation.demand = False: a router with price = 'relative' needs it: set observation.demand")


class Parts(NamedTuple):
    """The parts of the scores."""

    columns: FeatureColumns
    embedding: Tensor | None  # (B, N, E) of each choice, from the encoder
    impact: Tensor  # (B, N) predicted marginal QoS of each expert
    future: Tensor  # (B, N) effect of the choice on later requests, usually <= 0
    drop: Tensor  # (B, 1) score of a drop


class Router(nn.Module):
    """Scores of the N experts and of drop, in QoS: the greater, the better.

    ``score(s, e) = impact(s, e) + future(s, e)``. The impact is the predicted marginal QoS (``ImpactEstimator``). The future part
    is the value of the expert's afterstate less that of the state: ``l - price * exp(m) + u``, with m and u learned and 0 at
    first. So an untrained router is impact-greedy with a congestion price that rises with the offered load. l is the price's
    own adjustment (``Price``, ``RelativePrice``). A drop changes nothing, now or later: its score is 0, plus a learned u.

    Weights are shared by the experts, so any number of experts works. Permuting the experts permutes their scores and leaves that
    of drop. The router sees the load of an expert in that expert's own columns and embedding.

    Args:
        spec: the network's specification.

    Shapes:
        - observation: as ``EdgeRoutingEnv`` describes it, with a leading batch axis B
        - output: (B, N + 1), ``MASKED_SCORE`` for impossible actions
    """

    def __init__(self, spec: RouterSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = _encoder(spec)
        self.embedding = {"han": 2, "pooled": 1, "aggregates": 0}[spec.encoder] * spec.graph_hidden
        bounded = spec.bounded and spec.impact
        self.estimator = ImpactEstimator(
            hidden=spec.impact_hidden, embedding=self.embedding, columns=spec.choice_columns, bounded=bounded
        )
        learned = spec.future and spec.hidden > 0
        self.future = GatedMLP(spec.choice_columns, spec.hidden, 3, self.embedding, bounded=bounded) if learned else None
        self.price = (RelativePrice() if spec.price == "relative" else Price()) if spec.future else None
        self.register_buffer("listening", torch.ones(()))

    @property
    def encoder_enabled(self) -> bool:
        """Whether the encoder is enabled; training may begin without it."""
        return bool(self.get_buffer("listening") > 0)

    def enable_encoder(self, on: bool) -> None:
        """Enable or disable the encoder."""
        self.get_buffer("listening").fill_(float(on))

    def forward(self, observation: Observation, terms: Tensor | None = None) -> Tensor:
        """(B, N + 1) masked scores; ``terms`` as in ``Price``.

        Raises:
            InputError: as ``check_observation``.
        """
        if self.price is None or self.future is not None or self.estimator.correction is not None:
            return self.scores(observation, self.parts(observation, terms))
        check_observation(self.spec, observation)  # the price alone: no columns for networks
        impact = predicted_marginal(observation)
        future = self.price.adjustment(observation, terms) - self.price(observation, terms)
        return self._masked(observation, impact + future, torch.zeros_like(impact[..., :1]))

    def parts(self, observation: Observation, terms: Tensor | None = None) -> Parts:
        """The parts of the scores, for training, search and explanations; ``terms`` as in ``Price``.

        Raises:
            InputError: as ``check_observation``.
        """
        check_observation(self.spec, observation)
        columns, embedding = read_columns(observation), self.embed(observation)
        impact = self.estimator(columns, embedding)
        future, drop = self.look_ahead(observation, columns, embedding, terms)
        return Parts(columns=columns, embedding=embedding, impact=impact, future=future, drop=drop)

    def scores(self, observation: Observation, parts: Parts) -> Tensor:
        """(B, N + 1) masked scores from their parts."""
        return self._masked(observation, parts.impact + parts.future, parts.drop)

    def _masked(self, observation: Observation, experts: Tensor, drop: Tensor) -> Tensor:
        mask = observation["action_mask"] > 0
        if not self.spec.drop:  # only where no expert can take the request
            drop = torch.where(mask[..., :-1].any(dim=-1, keepdim=True), MASKED_SCORE / 2, drop)
        return torch.where(mask, torch.cat([experts, drop], dim=-1), MASKED_SCORE)

    def embed(self, observation: Observation) -> Tensor | None:
        """(B, N, E) the encoder's embedding of each choice: the expert with and without the request; None if disabled."""
        if self.encoder is None or not self.encoder_enabled:
            return None
        experts, n = observation["experts"], observation["experts"].shape[-2]
        cluster = observation["cluster"].unsqueeze(-2).expand(-1, n, -1)
        told = squash(torch.cat([experts, cluster, observation["arrived"]], dim=-1))
        told = told.split([told.shape[-1] - len(ARRIVED_FEATURES), len(ARRIVED_FEATURES)], dim=-1)
        running, waiting = observation["running"], observation["waiting"]
        requests = squash(torch.cat([running, waiting], dim=2)).split([running.shape[2], waiting.shape[2]], dim=2)
        out = self.encoder(*told, requests[0], observation["running_mask"], requests[1], observation["waiting_mask"])
        return out.unsqueeze(-2).expand(-1, n, -1) if isinstance(out, Tensor) else torch.cat(out, dim=-1)

    def look_ahead(
        self, observation: Observation, columns: FeatureColumns, embedding: Tensor | None, terms: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(B, N) the future part of the experts' scores, and (B, 1) the score of a drop; ``terms`` as in ``Price``."""
        nothing = torch.zeros_like(columns.marginal[..., :1])
        if self.price is None:
            return torch.zeros_like(columns.marginal), nothing
        if self.future is None:
            return self.price.adjustment(observation, terms) - self.price(observation, terms), nothing
        log_price_shift, bonus, drop = self.future(columns.choice, embedding).unbind(dim=-1)
        price = self.price(observation, terms) * log_price_shift.clamp(-_PRICE_LOG_BOUND, _PRICE_LOG_BOUND).exp()
        return bonus + self.price.adjustment(observation, terms) - price, drop.mean(dim=-1, keepdim=True)

    def untrained(self, observation: Observation, columns: FeatureColumns) -> Tensor:
        """(B, N) the experts' scores before training: the predicted marginal QoS less the price, if there is one."""
        if self.price is None:
            return columns.marginal
        return columns.marginal + self.price.adjustment(observation) - self.price(observation)

    def explain(self, observation: Observation) -> Explanation:
        """The impact estimator's predictions for each expert, and their inputs."""
        return self.estimator.explain(observation, read_columns(observation), self.embed(observation))


def _encoder(spec: RouterSpec) -> HANEncoder | PooledHAN | None:
    """The graph encoder, if there is one. Imported here: the paper's needs torch-geometric, which takes seconds to import."""
    widths = (len(EXPERT_FEATURES) + len(CLUSTER_FEATURES), len(REQUEST_FEATURES), len(ARRIVED_FEATURES))
    if spec.encoder == "han":
        from models.han import REQUESTS, HANEncoder

        requests = REQUESTS if spec.edges == "all" else (spec.edges,)
        return HANEncoder(*widths, spec.graph_hidden, spec.heads, spec.layers, requests=requests, semantic=spec.semantic)
    if spec.encoder == "pooled":
        from models.paper.pooled import PooledHAN

        return PooledHAN(*widths, spec.graph_hidden, spec.heads)
    return None
