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

from rllib_envs.sim.jit import kernel, part_of

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

    @property
    def plain(self) -> bool:
        """Whether this is no more than a bound on the latency per token, the same for all.

        Then everybody has the same priority. Engines that schedule by it serve in the order of arrival like others.
        """
        alone = self.terms.size == 1 and all(self.terms[name][0] == NO_BOUND_S for name in ("ttft_s", "tpot_s", "e2e_s"))
        return bool(
            alone
            and self.terms["weight"][0] == 1
            and self.allowed.all()
            and not self.round_trip_s.any()
            and not self.prompt_s.any()
        )


def plain_service(slo_s: float, n_experts: int) -> Service:
    """One class with a bound on the latency per token alone, no limits, and no network."""
    none = np.zeros((1, n_experts))
    return Service(per_token_terms(slo_s), np.ones((1, 1, n_experts), np.bool_), none, none)


# The kernels below take ``extras`` (M,) EXTRA or None: what they do about optional parts is compiled only where there are extras.


@kernel
def extras_of(extras, b):
    """The extras of cluster b, (M,), of those of all; None if there are none."""
    return part_of(extras, b)


@kernel
def class_of(extras, index):
    """The service class of a request."""
    if extras is None:
        return 0
    return extras[index].service


@kernel
def is_allowed(extras, service, user, e):
    """Whether a request of this USER may go to expert e."""
    if extras is None:
        return True
    return service.allowed[user.service, user.tenant, e]


@kernel
def network_s(extras, service, site, e, prompt, jitter):
    """Time of the network for a request of ``prompt`` tokens from a site to expert e; ``jitter`` 1: in the mean."""
    if extras is None:
        return 0.0
    return service.round_trip_s[site, e] * jitter + service.prompt_s[site, e] * prompt


@kernel
def away_s(extras, service, user, age_s, e, prompt, jitter):
    """Time of a request away from expert e: the network's, and ``age_s`` since its first arrival if it arrives again."""
    if extras is None:
        return 0.0
    return network_s(extras, service, user.site, e, prompt, jitter) + age_s


@kernel
def mean_network_s(extras, index):
    """Mean time of the network between the user of a request and the expert that it was sent to, and its age then."""
    if extras is None:
        return 0.0
    return extras[index].network_s


@kernel
def promise(record, extras, index, terms, output, network_s):
    """Write what request ``index`` of ``output`` tokens and true score ``record.score`` is promised, and its QoS in time.

    ``network_s`` counts in the time to the first token and to the end. It is taken off what the engine may take.
    """
    if extras is None:
        record.budget_s = output * terms.slo_s
    else:
        extra = extras[index]
        record.budget_s = budget_s(extras, terms, output) - network_s
        extra.ttft_s = terms.ttft_s - network_s
        extra.generation_s = terms.tpot_s * (output - 1)
        extra.worth = record.score
        if terms.weight != 1.0:
            extra.worth = np.rint(terms.weight * record.score * SCORE_GRID) * (1.0 / SCORE_GRID)


@kernel
def in_time(record, extras, index, arrival_s, finish_s):
    """Whether request ``index``, finished at ``finish_s``, meets all bounds that it was promised."""
    if extras is None:
        return finish_s - arrival_s <= record.budget_s
    extra = extras[index]
    return (
        finish_s - arrival_s <= record.budget_s
        and record.first_token_s - arrival_s <= extra.ttft_s
        and finish_s - record.first_token_s <= extra.generation_s
    )


@kernel
def worth_of(record, extras, index):
    """QoS of request ``index`` in time."""
    if extras is None:
        return np.float64(record.score)
    return extras[index].worth


@kernel
def budget_s(extras, terms, output):
    """The time that an answer of ``output`` tokens may take from arrival to finish, by the bounds on both."""
    if extras is None:
        return output * terms.slo_s
    return min(output * terms.slo_s, terms.e2e_s)


@kernel
def latency_ratio(record, extra, stay_ratio, arrival_s):
    """The largest latency of a finished request, each over its bound: at most 1 if it is in time.

    ``stay_ratio``: time from arrival to finish, the network's included, over the time that the bounds on both allow.
    """
    generation_s = record.finish_s - record.first_token_s
    generation = generation_s / extra.generation_s if generation_s > 0 else 0.0
    first = (record.first_token_s - arrival_s + extra.network_s) / (extra.ttft_s + extra.network_s)
    return max(stay_ratio, first, generation)
