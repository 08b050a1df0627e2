"""Terms of service: what each class of requests is promised, and what an answer in time counts.

The bounds are those of goodput (Zhong et al., DistServe, arXiv 2401.09670): a request is in time if all bounds that its class
has hold. The latency per token is that of arXiv 2508.00234.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.jit import kernel

SCORE_GRID = 2.0**20
"""Scores, and weights times scores, are multiples of 2**-20: sums of them are exact in float64, in any order."""

NO_BOUND_S = 1e30
"""A bound that always holds: finite, as infinity times zero tokens is no number."""

TERMS = np.dtype(
    [
        ("slo_s", "f8"),  # (finish - arrival) / output tokens
        ("ttft_s", "f8"),  # first token - arrival
        ("tpot_s", "f8"),  # (finish - first token) / (output tokens - 1)
        ("e2e_s", "f8"),  # finish - arrival
        ("unit_s", "f8"),  # the latency per token that features are in units of
        ("weight", "f8"),  # QoS of an answer in time over its score
        ("priority", "i4"),  # a lower number is served first, by engines that schedule by it
    ],
    align=True,
)  # fmt: skip


USER = np.dtype(
    [
        ("service", "i4"),  # service class
        ("tenant", "i4"),
        ("site", "i4"),
        ("jitter", "f8"),  # time of the network over its mean
    ],
    align=True,
)  # fmt: skip
"""Who sends a request, and from where."""


def users(count: int) -> NDArray[np.void]:
    """(count,) USER of the first class and tenant, at the first site."""
    found = np.zeros(count, USER)
    found["jitter"] = 1
    return found


def per_token_terms(slo_s: float) -> NDArray[np.void]:
    """(1,) TERMS: one class for all, with a bound on the latency per token alone."""
    terms = np.zeros(1, TERMS)
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        terms[name] = NO_BOUND_S
    terms["slo_s"] = terms["unit_s"] = slo_s
    terms["weight"] = 1
    return terms


class Service(NamedTuple):
    """What a scenario promises, where requests may go, and how far that is: for all clusters alike."""

    terms: NDArray[np.void]  # (C,) TERMS of the service classes
    allowed: NDArray[np.bool_]  # (C, T, N) experts that requests of a service class and a tenant may go to
    round_trip_s: NDArray[np.float64]  # (S, N) mean time of the network from a site to an expert and back
    prompt_s: NDArray[np.float64]  # (S, N) time of the network for each prompt token
    # One class for all, of priority 0, latency per token is its only bound, there is no network, and nobody arrives twice.
    plain: bool


def plain_service(slo_s: float, n_experts: int) -> Service:
    """One class with a bound on the latency per token alone, no limits, and no network."""
    none = np.zeros((1, n_experts))
    return make_service(per_token_terms(slo_s), np.ones((1, 1, n_experts), np.bool_), none, none)


def make_service(
    terms: NDArray[np.void], allowed: NDArray[np.bool_], round_trip_s: NDArray[np.float64], prompt_s: NDArray[np.float64]
) -> Service:
    """The tables, and whether they say more than a bound on the latency per token."""
    alone = terms.size == 1 and all(terms[name][0] == NO_BOUND_S for name in ("ttft_s", "tpot_s", "e2e_s"))
    plain = bool(alone and not terms["priority"].any() and not round_trip_s.any() and not prompt_s.any())
    return Service(terms, allowed, round_trip_s, prompt_s, plain)


@kernel
def network_s(service, site, e, prompt, jitter):
    """Time of the network for a request of ``prompt`` tokens from a site to expert e; ``jitter`` 1: in the mean."""
    if service.plain:
        return 0.0
    return service.round_trip_s[site, e] * jitter + service.prompt_s[site, e] * prompt


@kernel
def promise(record, terms, output, network_s):
    """Write what a request of ``output`` tokens and true score ``record.score`` is promised, and its QoS in time (RECORD).

    ``network_s`` counts in the time to the first token and to the end. It is taken off what the engine may take.
    """
    record.budget_s = budget_s(terms, output) - network_s
    record.ttft_s = terms.ttft_s - network_s
    record.generation_s = terms.tpot_s * (output - 1)
    record.worth = record.score
    if terms.weight != 1.0:
        record.worth = np.rint(terms.weight * record.score * SCORE_GRID) * (1.0 / SCORE_GRID)


@kernel
def in_time(record, arrival_s, finish_s):
    """Whether a request that is finished at ``finish_s`` meets all bounds of its RECORD."""
    stay_s = finish_s - arrival_s
    return (
        stay_s <= record.budget_s
        and record.first_token_s - arrival_s <= record.ttft_s
        and finish_s - record.first_token_s <= record.generation_s
    )


@kernel
def budget_s(terms, output):
    """The time that an answer of ``output`` tokens may take from arrival to finish, by the bounds on both."""
    return min(output * terms.slo_s, terms.e2e_s)


@kernel
def latency_ratio(record, stay_ratio, arrival_s):
    """The largest latency of a finished request, each over its bound in its RECORD: at most 1 if it is in time.

    ``stay_ratio``: time from arrival to finish, the network's included, over the time that the bounds on both allow.
    """
    generation_s = record.finish_s - record.first_token_s
    generation = generation_s / record.generation_s if generation_s > 0 else 0.0
    first = (record.first_token_s - arrival_s + record.network_s) / (record.ttft_s + record.network_s)
    return max(stay_ratio, first, generation)
