"""Terms of service: what each class of requests is promised, and what an answer in time counts.

The bounds are those of goodput (Zhong et al., DistServe, arXiv 2401.09670): a request is in time if all bounds that its class
has hold. The latency per token is that of arXiv 2508.00234.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

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


def per_token_terms(slo_s: float) -> NDArray[np.void]:
    """(1,) TERMS: one class for all, with a bound on the latency per token alone."""
    terms = np.zeros(1, TERMS)
    for name in ("ttft_s", "tpot_s", "e2e_s"):
        terms[name] = NO_BOUND_S
    terms["slo_s"] = terms["unit_s"] = slo_s
    terms["weight"] = 1
    return terms


@kernel
def promise(record, terms, output):
    """Write what a request of ``output`` tokens and true score ``record.score`` is promised, and its QoS in time (RECORD)."""
    record.budget_s = budget_s(terms, output)
    record.ttft_s = terms.ttft_s
    record.generation_s = terms.tpot_s * (output - 1)
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

    ``stay_ratio``: (finish - arrival) / budget.
    """
    generation_s = record.finish_s - record.first_token_s
    generation = generation_s / record.generation_s if generation_s > 0 else 0.0
    return max(stay_ratio, (record.first_token_s - arrival_s) / record.ttft_s, generation)
