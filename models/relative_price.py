"""The relative price: the opportunity cost of a request in proportion to the cluster's own means, for any cluster.

A textbook would charge a request for what it takes from later ones: the value of a mean request, times how many mean requests
would fit into what it uses, times how scarce that is. So it is written here, and the parameters before training say just that.
All inputs are ratios within bounds: a cluster unlike any in training changes the price no further than they allow.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.features import Observation, arrived_column, expert_column, expert_quantity, expert_time, whatif_column
from models.price import Term
from rllib_envs.sim.demand import MOST_LOG_LOAD
from rllib_envs.sim.rows import DEMAND_FEATURES

TERMS: dict[str, Term] = {
    # The logarithm of the share of a mean request's quality that a mean request is charged, as a sum:
    "level": Term(0.0, 0.25),
    "load": Term(1.0, 0.25),  # times the log of the long-run offered load
    "rise": Term(1.0, 0.25),  # times log(recent / long-run offered load)
    "above": Term(0.0, 0.3),  # times the log of the recent offered load, where above 0
    "overload": Term(0.0, 0.5),  # times how long and how far there has been overload
    "late": Term(0.0, 0.2),  # times log(1 + share of requests that were late against what was predicted / .03)
    "quality": Term(0.0, 0.3),  # times log(the expert's mean score / the mean over experts): a good one's place is worth more
    "use": Term(0.0, 0.2),  # times the log of what is used of the experts in the mean: with room elsewhere, a place costs less
    "experts": Term(0.0, 0.2),  # times log(experts / 6): the fewer there are, the less the others can take over
    "own": Term(0.0, 0.2),  # times log(mean predicted score of the request / of the experts' mean scores)
    "size": Term(0.0, 0.1),  # exponent beyond 1 of what the request takes over what a mean request takes
    # Scarcity at the expert:
    "memory": Term(0.5, 0.15),  # weight of its reserved KV memory; the rest is that of its time, both from 0 to 1
    "power": Term(1.0, 0.2),  # exponent of their sum
    "floor": Term(0.0, 0.05),  # cost of an idle expert
    "queue": Term(0.0, 0.1),  # times waiting over running requests
    # Weight of softened deadlines, from 0 to 1, as a sum:
    "soft": Term(0.0, 0.2),
    "soft_load": Term(0.0, 0.15),  # times the log of the recent offered load
    "soft_error": Term(0.0, 0.4),  # times (root mean square error of log lengths - .4)
    # Predicted scores count as the expert's mean score plus this much of the difference:
    "trust": Term(1.0, 0.1),
    "trust_load": Term(0.0, 0.15),  # more of it for each unit of the log of the recent offered load
    # Came later; those of a router from before are 0:
    "common": Term(0.0, 0.15),  # more trust in the part that is alike at all experts: how good any answer will be
    "common_load": Term(0.0, 0.15),  # the same for each unit of the log of the recent offered load
    "late_error": Term(0.0, 0.4),  # more of "late" for each unit of the error of lengths, as in "soft_error"
    "soft_late": Term(0.0, 0.2),  # more of "soft", times what "late" is multiplied by
}
"""The parameters by name, in their order. Where a router has fewer, the last ones are 0."""

EARLIER_TERMS = 20
"""Number of parameters that a router from before the last ones has."""

_LEAST_LOG_LOAD, _MOST_LONG_RUN = -4.0, 1.5
_LEAST_LOG_PRICE, _MOST_LOG_PRICE, _MOST_LOG_RATIO, _MOST_LOG_QUALITY = -20.0, 5.0, 9.0, 2.0
_MOST_USED, _MOST_QUEUE = 3.0, 4.0
_LEAST_ROOM, _LEAST_QUALITY, _LEAST_USED = 0.1, 1e-3, 0.05
_TYPICAL_EXPERTS, _TYPICAL_ERROR, _FEW_LATE = 6.0, 0.4, 0.03
_MOST_ERROR, _MOST_TRUST = 1.5, 2.0


class RelativePrice(nn.Module):
    """The opportunity cost of sending the request to each expert, in QoS.

    ``cost = exp(terms) * quality * ratio**(1 + size) * (used**power + floor + queue * waiting / (1 + running))``, where

    - ``quality``: mean over the experts of their mean scores: what later requests are worth, whoever this one is;
    - ``ratio``: the time that the request takes of the expert, over that of late requests (``sim.demand``);
    - ``used``: twice the weighted mean of the reserved share of the KV memory, and of the share that present requests take of
      the time that an iteration's fixed cost leaves;
    - ``terms``: the first ten of ``TERMS``, and ``late_error``.

    A search sets the parameters, not gradients: to torch they are a buffer, ``terms``.

    Shapes:
        - observation: as ``EdgeRoutingEnv`` describes it, with ``demand`` and a leading batch axis B
        - output: (B, N)
    """

    TERMS = TERMS
    SEARCHES = 0  # that the parameters before training come from: none
    REFERENCE: Mapping[str, float] | None = {"level": -50.0, "trust": 0.75, "trust_load": 0.0}
    """Parameters that make the router impact-greedy with its defaults, which the search is to leave behind nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.terms: Tensor
        self.register_buffer("terms", torch.tensor([term.prior for term in TERMS.values()]))

    def forward(self, observation: Observation, terms: Tensor | None = None) -> Tensor:
        """(B, N) costs; ``terms`` (B, len(TERMS)) are other parameters for each cluster of the batch."""
        term, fast = self._named(terms), _loads(observation)[1]
        used = _used(observation, term["memory"].clamp(0, 1))
        queue = expert_quantity(observation, "waiting") / (1 + expert_quantity(observation, "running"))
        scarcity = used ** term["power"].clamp(0.2, 4) + term["floor"] + term["queue"] * queue.clamp(max=_MOST_QUEUE)
        quality = expert_column(observation, "mean_score").mean(dim=-1, keepdim=True).clamp(min=_LEAST_QUALITY)
        own = self._trusted(observation, fast, term).mean(dim=-1, keepdim=True).clamp(min=_LEAST_QUALITY)
        log_price = _log_price(observation, term) + term["use"] * used.mean(dim=-1, keepdim=True).clamp(min=_LEAST_USED).log()
        log_price = log_price + term["own"] * (own / quality).log().clamp(-_MOST_LOG_QUALITY, _MOST_LOG_QUALITY)
        log_ratio = expert_time(observation).log() - _demand(observation, "log_expert_time")
        log_size = log_ratio.clamp(-_MOST_LOG_RATIO, _MOST_LOG_RATIO) * (1 + term["size"].clamp(-0.9, 1))
        log_cost = log_price.clamp(_LEAST_LOG_PRICE, _MOST_LOG_PRICE) + log_size
        return quality * log_cost.exp() * scarcity.clamp(min=0)

    def adjustment(self, observation: Observation, terms: Tensor | None = None) -> Tensor:
        """(B, N) change of the predicted marginal QoS by trust in scores and by softened deadlines; arguments as above."""
        term, fast = self._named(terms), _loads(observation)[1]
        soft = term["soft"] + term["soft_load"] * fast + term["soft_error"] * _wrong(observation)
        soft = (soft + term["soft_late"] * _unforeseen(observation)).clamp(0, 1)
        strict, change = whatif_column(observation, "own_success"), whatif_column(observation, "soft_change")
        success = strict + soft * (whatif_column(observation, "own_success_softened") - strict)
        others = soft * (whatif_column(observation, "soft_change_softened") - change)
        return self._trusted(observation, fast, term) * success - arrived_column(observation, "predicted_score") * strict + others

    def _named(self, terms: Tensor | None) -> dict[str, Tensor]:
        values = self.terms if terms is None else terms
        return {name: values[..., i, None] for i, name in enumerate(TERMS)}

    def _trusted(self, observation: Observation, fast: Tensor, term: dict[str, Tensor]) -> Tensor:
        """(B, N) predicted scores, as far as they are trusted."""
        mean = expert_column(observation, "mean_score")
        trust = (term["trust"] + term["trust_load"] * fast).clamp(0, _MOST_TRUST)
        beyond = arrived_column(observation, "predicted_score") - mean
        common = (term["common"] + term["common_load"] * fast).clamp(-_MOST_TRUST, _MOST_TRUST)
        return mean + trust * beyond + common * beyond.mean(dim=-1, keepdim=True)


def _log_price(observation: Observation, term: Mapping[str, Tensor]) -> Tensor:
    """(B, N) the sum of the terms, but for those of what is in use and of the request."""
    slow, fast = _loads(observation)
    count = torch.ones_like(observation["experts"][..., 0]).sum(dim=-1, keepdim=True)  # not a constant of an exported graph
    return (
        term["level"]
        + term["load"] * slow
        + term["rise"] * (fast - slow)
        + term["above"] * fast.clamp(min=0)
        + term["overload"] * _demand(observation, "overload")
        + (term["late"] + term["late_error"] * _wrong(observation)) * _unforeseen(observation)
        + term["quality"] * _relative_quality(observation)
        + term["experts"] * (count / _TYPICAL_EXPERTS).log()
    )


def _used(observation: Observation, memory: Tensor) -> Tensor:
    """(B, N) how much of each expert is in use; ``memory``: the weight of its KV memory, the rest is that of its time."""
    base, step = expert_column(observation, "base_time"), expert_column(observation, "step_time")
    busy = ((step - base) / (1 - base).clamp(min=_LEAST_ROOM)).clamp(0, _MOST_USED)
    reserved = expert_column(observation, "kv_reserved").clamp(max=_MOST_USED)
    return (2 * (memory * reserved + (1 - memory) * busy)).clamp(min=1e-3)


def _loads(observation: Observation) -> tuple[Tensor, Tensor]:
    """(B, 1) logarithms of the long-run and the recent offered load, within bounds."""
    slow, fast = (_demand(observation, f"log_load_{span}") for span in ("long_run", "recent"))
    return slow.clamp(_LEAST_LOG_LOAD, _MOST_LONG_RUN), fast.clamp(_LEAST_LOG_LOAD, MOST_LOG_LOAD)


def _relative_quality(observation: Observation) -> Tensor:
    """(B, N) log of each expert's mean score over the mean of all."""
    mean = expert_column(observation, "mean_score").clamp(min=_LEAST_QUALITY)
    return (mean / mean.mean(dim=-1, keepdim=True)).log().clamp(-_MOST_LOG_QUALITY, _MOST_LOG_QUALITY)


def _wrong(observation: Observation) -> Tensor:
    """(B, 1) root mean square error of log lengths, within bounds, less a typical one."""
    return _demand(observation, "length_error").clamp(max=_MOST_ERROR) - _TYPICAL_ERROR


def _unforeseen(observation: Observation) -> Tensor:
    """(B, 1) log(1 + share / .03) of requests that were late although the roll-out did not say so.

    It is what later arrivals did to them. Some requests are late wherever they go. A price does not help them.
    """
    return ((_demand(observation, "late") - _demand(observation, "foreseen")).clamp(min=0) / _FEW_LATE).log1p()


def _demand(observation: Observation, name: str) -> Tensor:
    """(B, 1) one of DEMAND_FEATURES."""
    return observation["demand"][..., DEMAND_FEATURES.index(name), None]
