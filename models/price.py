"""The price of congestion: what a request that is sent to an expert costs those still to come, as a formula with few parameters.

``rllib_envs.baselines.impact_greedy`` has the simplest form of it, with one parameter tuned for each load. Here the price follows
the load and differs between engines by what they are, so that one set of parameters serves any cluster at any load. They are
few enough to be found by trying: ``models.rllib.price_search``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.features import Observation, expert_column, units
from rllib_envs.observation import CLUSTER_FEATURES, EXPERT_FEATURES


class Term(NamedTuple):
    """A parameter of the price: what it is before training, and how far a search goes from there at first."""

    prior: float
    spread: float


TERMS: dict[str, Term] = {
    # The logarithm of the price of a unit, as a sum:
    "level": Term(0.4, 0.3),
    "load": Term(1.3, 0.3),  # times log(offered load / .5)
    "rise": Term(0.4, 0.2),  # times log(offered load of late / offered load)
    "reserved": Term(-0.2, 0.4),  # times the mean share of the KV memory that is spoken for, less .5
    "kv_capacity": Term(-0.5, 0.3),  # times the expert's own figures, about 0 in the middle
    "base_time": Term(2.0, 0.8),
    "sequence_time": Term(1.5, 0.8),
    "context_time": Term(-0.4, 0.5),
    "prefill_time": Term(0.8, 0.4),
    "mean_score": Term(0.3, 0.4),
    # Units: what the request takes of the engine
    "memory": Term(0.15, 0.2),  # weight of KV memory beside time
    "size": Term(0.05, 0.1),  # exponent beyond 1: large requests dearer or cheaper than in proportion
    # times how scarce it is there:
    "power": Term(1.2, 0.25),  # exponent of the expert's share of KV memory that is spoken for
    "floor": Term(0.1, 0.05),  # what an idle expert costs
    "queue": Term(0.4, 0.3),  # weight of 32 waiting requests
}
"""The parameters by name, in their order."""

_LOG_BOUND = 5.0
_LOG_LOADS = (math.log(0.02), 0.0)  # a price goes by the load from here to there: nobody carries more for long
_LOG_LOADS_OF_LATE = (math.log(0.02), math.log(8.0))  # floods
_LOG_TYPICAL_LOAD, _TYPICAL_UNITS = math.log(0.5), 0.1
_FIGURES = {  # of an expert: what is taken off, and the scale
    "kv_capacity": (0.0, 1.0),
    "base_time": (0.4, 1.0),
    "sequence_time": (0.025, 10.0),
    "context_time": (0.08, 10.0),
    "prefill_time": (2.0, 0.5),
    "mean_score": (0.5, 4.0),
}
_FIGURE_COLUMNS = [EXPERT_FEATURES.index(name) for name in _FIGURES]


class Price(nn.Module):
    """What sending the request to each expert costs those still to come, in QoS.

    ``cost = exp(terms) * units * (units / .1)**size * (reserved**power + floor + queue * waiting)`` with ``terms`` linear in the
    logarithm of the offered load, in how it changes, and in the engine's figures; ``units = time + memory * share``
    (``models.features.units``). Where it starts from is what searches in other runs came to, rounded.

    The parameters are no subject of gradients, a search sets them: to torch they are a buffer, ``terms``.

    Shapes:
        - observation: as ``EdgeRoutingEnv`` describes it, with a leading batch axis B
        - output: (B, N)
    """

    def __init__(self) -> None:
        super().__init__()
        self.terms: Tensor
        self.register_buffer("terms", torch.tensor([term.prior for term in TERMS.values()]))

    def forward(self, observation: Observation, terms: Tensor | None = None) -> Tensor:
        """(B, N) costs; ``terms`` (B, len(TERMS)) are other parameters for each cluster of the batch."""
        values = self.terms if terms is None else terms
        term = {name: values[..., i, None] for i, name in enumerate(TERMS)}  # each broadcasts over (B, N)
        slow, fast, reserved = (_cluster(observation, name) for name in ("log_load_slow", "log_load_fast", "mean_kv_reserved"))
        slow, fast = slow.clamp(*_LOG_LOADS), fast.clamp(*_LOG_LOADS_OF_LATE)
        log_price = (
            term["level"]
            + term["load"] * (slow - _LOG_TYPICAL_LOAD)
            + term["rise"] * (fast - slow)
            + term["reserved"] * (reserved - 0.5)
        )
        middle, scale = observation["experts"].new_tensor(list(_FIGURES.values())).unbind(dim=-1)
        weights = torch.cat([term[name] for name in _FIGURES], dim=-1) * scale
        log_price = log_price + ((observation["experts"][..., _FIGURE_COLUMNS] - middle) * weights.unsqueeze(-2)).sum(dim=-1)
        time, share = units(observation)
        size = (time + term["memory"] * share).clamp(min=1e-5)
        own = expert_column(observation, "kv_reserved").clamp(min=1e-3)
        scarce = own ** term["power"].clamp(0.2, 4.0) + term["floor"] + term["queue"] * expert_column(observation, "waiting")
        grown = size * (size / _TYPICAL_UNITS) ** term["size"]
        return log_price.clamp(-_LOG_BOUND, _LOG_BOUND).exp() * grown * scarce.clamp(min=0)


def _cluster(observation: Observation, name: str) -> Tensor:
    """(B, 1) one of CLUSTER_FEATURES."""
    return observation["cluster"][..., CLUSTER_FEATURES.index(name), None]
