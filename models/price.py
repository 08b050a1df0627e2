"""The congestion price: the opportunity cost of sending a request to an expert, as a formula with few parameters.

``rllib_envs.baselines.impact_greedy`` has its simplest form, with one parameter tuned for each load. This price depends on the
load and the engine's figures, so one set of parameters serves any cluster at any load. ``models.rllib.avl.price_search``
finds the parameters by direct search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.features import Observation, arrived_column, expert_column, units, whatif_column
from rllib_envs.sim.rows import CLUSTER_FEATURES, EXPERT_FEATURES


class Term(NamedTuple):
    """A parameter of the price: its initial value, and the initial spread of the search."""

    prior: float
    spread: float


TERMS: dict[str, Term] = {
    # The logarithm of the price per unit, as a sum:
    "level": Term(-0.35, 0.1),
    "load": Term(1.02, 0.1),  # times log(offered load / .5)
    "rise": Term(0.6, 0.075),  # times log(recent / long-run offered load)
    "experts": Term(-0.44, 0.075),  # times log(experts / 6): the fewer there are, the less the others can take over
    "reserved": Term(-0.09, 0.15),  # times the mean reserved share of the KV memory, less .5
    "kv_capacity": Term(-0.09, 0.1),  # times the expert's own figures, about 0 at typical values
    "base_time": Term(0.86, 0.25),
    "sequence_time": Term(4.01, 0.3),
    "context_time": Term(0.01, 0.1),
    "prefill_time": Term(0.29, 0.15),
    "mean_score": Term(0.57, 0.15),
    # Units: the request's use of the engine
    "memory": Term(0.27, 0.06),  # weight of KV memory beside time
    "size": Term(-0.2, 0.04),  # exponent beyond 1: nonlinear cost of large requests
    # times the scarcity there:
    "power": Term(1.42, 0.1),  # exponent of the expert's reserved share of KV memory
    "floor": Term(0.35, 0.025),  # cost of an idle expert
    "queue": Term(-0.01, 0.1),  # weight of 32 waiting requests
    # Weight of softened deadlines, from 0 to 1:
    "softening": Term(0.67, 0.075),  # times |log(recent / long-run offered load)| beyond its value at steady load
    # Additions to some of these under overload, times the logarithm of the recent offered load above capacity
    "overload_level": Term(0.17, 0.05),
    "overload_reserved": Term(0.17, 0.075),
    "overload_kv_capacity": Term(0.1, 0.05),
    "overload_sequence_time": Term(2.12, 0.15),
    "overload_context_time": Term(-0.21, 0.05),
    "overload_prefill_time": Term(-0.1, 0.05),
    "overload_memory": Term(-0.09, 0.025),
    "overload_size": Term(0.31, 0.02),
    "overload_power": Term(-0.81, 0.05),
}
"""The parameters by name, in their order."""

_OVERLOAD = "overload_"
_USUAL = [name for name in TERMS if not name.startswith(_OVERLOAD)]
_OVERLOADED = {name.removeprefix(_OVERLOAD) for name in TERMS if name.startswith(_OVERLOAD)}
_CHANGES = [[float(name == _OVERLOAD + usual) for usual in _USUAL] for name in TERMS if name.startswith(_OVERLOAD)]

_LOG_BOUND = 5.0
_LOG_LOADS = (math.log(0.02), 0.0)  # the price uses the load within these bounds; sustained load stays below capacity
_LOG_LOADS_RECENT = (math.log(0.02), math.log(8.0))  # overload
_LOG_TYPICAL_LOAD, _LOG_TYPICAL_EXPERTS, _TYPICAL_UNITS = math.log(0.5), math.log(6), 0.1
_STEADY = 0.3  # difference of the logarithms of recent and long-run load at steady load
_FIGURES = {  # of an expert: the offset to subtract, and the scale
    "kv_capacity": (0.0, 1.0),
    "base_time": (0.4, 1.0),
    "sequence_time": (0.025, 10.0),
    "context_time": (0.08, 10.0),
    "prefill_time": (2.0, 0.5),
    "mean_score": (0.5, 4.0),
}
_FIRST_FIGURE = _USUAL.index("kv_capacity")
_FIGURE_COLUMNS = [EXPERT_FEATURES.index(name) for name in _FIGURES]


class Price(nn.Module):
    """The opportunity cost of sending the request to each expert, in QoS.

    ``cost = exp(terms) * units * (units / .1)**size * (reserved**power + floor + queue * waiting)`` with ``terms`` linear in the
    logarithms of the offered load and of the number of experts, in how the load changes, and in the engine's figures;
    ``units = time + memory * share`` (``models.features.units``). Under overload nine of the parameters differ: then most
    requests are dropped, and the question is which ones. When load fluctuates, predictions for in-flight requests go stale
    quickly, so deadlines are softened (``adjustment``). Initial values: the mean optimum of four earlier searches.

    A search sets the parameters, not gradients: to torch they are a buffer, ``terms``.

    Shapes:
        - observation: as ``EdgeRoutingEnv`` describes it, with a leading batch axis B
        - output: (B, N)
    """

    TERMS = TERMS
    SEARCHES = 4  # that the parameters before training come from
    REFERENCE: Mapping[str, float] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.terms: Tensor
        self.register_buffer("terms", torch.tensor([term.prior for term in TERMS.values()]))

    def forward(self, observation: Observation, terms: Tensor | None = None) -> Tensor:
        """(B, N) costs; ``terms`` (B, len(TERMS)) are other parameters for each cluster of the batch."""
        term, figures = self._terms_now(observation, terms)
        slow, fast = _loads(observation)
        count = torch.ones_like(observation["experts"][..., 0]).sum(dim=-1, keepdim=True)  # not a constant of an exported graph
        log_price = (
            term["level"]
            + term["load"] * (slow - _LOG_TYPICAL_LOAD)
            + term["rise"] * (fast - slow)
            + term["experts"] * (count.log() - _LOG_TYPICAL_EXPERTS)
            + term["reserved"] * (_cluster(observation, "mean_kv_reserved") - 0.5)
        )
        middle, scale = observation["experts"].new_tensor(list(_FIGURES.values())).unbind(dim=-1)
        shown = (observation["experts"][..., _FIGURE_COLUMNS] - middle) * (figures * scale).unsqueeze(-2)
        log_price = log_price + shown.sum(dim=-1)
        time, share = units(observation)
        size = (time + term["memory"] * share).clamp(min=1e-5)
        own = expert_column(observation, "kv_reserved").clamp(min=1e-3)
        scarce = own ** term["power"].clamp(0.2, 4.0) + term["floor"] + term["queue"] * expert_column(observation, "waiting")
        grown = size * (size / _TYPICAL_UNITS) ** term["size"]
        return log_price.clamp(-_LOG_BOUND, _LOG_BOUND).exp() * grown * scarce.clamp(min=0)

    def adjustment(self, observation: Observation, terms: Tensor | None = None) -> Tensor:
        """(B, N) change of the predicted marginal QoS by softened deadlines; arguments as above."""
        slow, fast = _loads(observation)
        loose = (self.terms if terms is None else terms)[..., _USUAL.index("softening"), None]
        share = (loose * ((fast - slow).abs() - _STEADY)).clamp(0, 1)
        own = whatif_column(observation, "own_success_softened") - whatif_column(observation, "own_success")
        others = whatif_column(observation, "soft_change_softened") - whatif_column(observation, "soft_change")
        return share * (arrived_column(observation, "predicted_score") * own + others)

    def _terms_now(self, observation: Observation, terms: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """The parameters at the current load, each broadcast over (B, N), and those of ``_FIGURES``, (..., 6)."""
        usual, changes = (self.terms if terms is None else terms).split([len(_USUAL), len(_CHANGES)], dim=-1)
        overload = _loads(observation)[1].clamp(min=0)
        values = usual + overload * (changes @ changes.new_tensor(_CHANGES))
        # Parameters that overload does not change are constants of a traced graph: fewer small operations, faster decisions.
        term = {name: (values if name in _OVERLOADED else usual)[..., i, None] for i, name in enumerate(_USUAL)}
        return term, values[..., _FIRST_FIGURE : _FIRST_FIGURE + len(_FIGURES)]


def _loads(observation: Observation) -> tuple[Tensor, Tensor]:
    """(B, 1) logarithms of the long-run and the recent offered load, clipped."""
    slow, fast = (_cluster(observation, f"log_load_{span}") for span in ("long_run", "recent"))
    return slow.clamp(*_LOG_LOADS), fast.clamp(*_LOG_LOADS_RECENT)


def _cluster(observation: Observation, name: str) -> Tensor:
    """(B, 1) one of CLUSTER_FEATURES."""
    return observation["cluster"][..., CLUSTER_FEATURES.index(name), None]
