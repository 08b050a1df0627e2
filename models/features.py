"""The networks' inputs from an observation: columns for each expert's state, its state with the request, and the choice.

All columns are computed from the observation alone (``EdgeRoutingEnv``). They work for any number of experts. Permuting the
experts permutes the columns. Unbounded quantities go through ``squash``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rllib_envs.sim.demand import FULL
from rllib_envs.sim.rows import (
    ARRIVED_FEATURES,
    ARRIVED_TABLE,
    CLUSTER_FEATURES,
    EXPERT_FEATURES,
    EXPERT_TABLE,
    INFORMATION_FEATURES,
    KV_UNIT_TOKENS,
    PLACE_FEATURES,
    WHATIF_FEATURES,
)

Observation = Mapping[str, Tensor]

_STEADY = ("running", "kv_used", "step_time", "max_budget_used", "mean_budget_used")  # no action changes them
_GROWING = ("waiting", "kv_reserved", "prefill_backlog", "decode_backlog", "score_present", "score_at_risk")
_ROLLED = ("soft_before", "drain_before_s", "stay_1_before", "stay_4_before", "stay_16_before")
_ROLLED_AFTER = ("drain_s", "stay_1", "stay_4", "stay_16")
_EFFECT = ("own_latency", "own_success", "soft_change", "hard_change", "new_violations", "least_slack", "slack_sd")
_ENGINE = (
    "base_time", "sequence_time", "context_time", "prefill_time", "kv_capacity", "max_running", "mean_score", "length_drift",
    "step_drift",
)  # fmt: skip
_ROLLED_SCALE = (0.25, 0.1, 0.25, 0.25, 0.25)
_LN_CAPACITY = math.log(2 ** EXPERT_TABLE["kv_capacity"].scale)  # exp2 has no counterpart in ONNX
_LN_SEATS = math.log(2 ** EXPERT_TABLE["max_running"].scale)
_LEAST = 1e-9
_BOUND = 20.0  # no request is worth more than 1, so the loss of more than twenty requests is cut off here

_PACE = 4  # columns of the cluster that describe the offered load, which no action changes
_POOLED = 6  # columns of ``_pooled``
_CHANGING = len(_GROWING) + len(_ROLLED)
_UNBOUNDED = [len(_STEADY), _CHANGING, _CHANGING, len(ARRIVED_FEATURES), len(_EFFECT), 2]  # columns to squash, in one call
_CONTEXT = len(_ENGINE) + len(CLUSTER_FEATURES)

STATE_COLUMNS = len(_STEADY) + _CHANGING + _CONTEXT
"""Columns of ``FeatureColumns.state``."""

_TOLD = len(ARRIVED_FEATURES) + 1 + _POOLED

CHOICE_COLUMNS = STATE_COLUMNS + _CHANGING + _TOLD + len(_EFFECT) + 4
"""Columns of ``FeatureColumns.choice``."""

REQUEST_COLUMNS = _TOLD + _CONTEXT - (len(CLUSTER_FEATURES) - _PACE)
"""Columns of ``FeatureColumns.request``."""

INFORMATION_COLUMNS = len(INFORMATION_FEATURES)
"""Columns more in ``FeatureColumns.choice`` and ``FeatureColumns.request``, if the observation has ``information``."""

PLACE_COLUMNS = len(PLACE_FEATURES)
"""Columns more in the same, after those, if the observation has ``places``."""


class FeatureColumns(NamedTuple):
    """The networks' inputs, for each of N experts."""

    state: Tensor  # (B, N, STATE_COLUMNS) the expert's present state: load, roll-out predictions, engine, cluster load
    choice: Tensor  # (B, N, CHOICE_COLUMNS) sending the request there: the expert before and after, and the effects
    request: Tensor  # (B, N, REQUEST_COLUMNS) columns that no action influences: request, engine, arrival rate
    # Where the observation has them, INFORMATION_COLUMNS more in ``choice`` and ``request``, then PLACE_COLUMNS more.
    marginal: Tensor  # (B, N) the roll-out's estimate of the marginal QoS; 0 without what-if results


def squash(x: Tensor) -> Tensor:
    """``sign(x) * log(1 + |x|)``: close to the identity near 0; it limits outliers."""
    return x.sign() * x.abs().log1p()


def expert_column(observation: Observation, name: str) -> Tensor:
    """(B, N) one of EXPERT_FEATURES."""
    return observation["experts"][..., EXPERT_FEATURES.index(name)]


def arrived_column(observation: Observation, name: str) -> Tensor:
    """(B, N) one of ARRIVED_FEATURES."""
    return observation["arrived"][..., ARRIVED_FEATURES.index(name)]


def expert_quantity(observation: Observation, name: str) -> Tensor:
    """(B, N) the same as ``expert_column`` in the unit of ``EXPERT_TABLE``."""
    return EXPERT_TABLE[name].scale * expert_column(observation, name)


def arrived_quantity(observation: Observation, name: str) -> Tensor:
    """(B, N) the same as ``arrived_column`` in the unit of ``ARRIVED_TABLE``."""
    return ARRIVED_TABLE[name].scale * arrived_column(observation, name)


def whatif_column(observation: Observation, name: str) -> Tensor:
    """(B, N) one of WHATIF_FEATURES; 0 if the observation has no what-if results."""
    if "whatif" not in observation:
        return torch.zeros_like(observation["experts"][..., 0])
    return observation["whatif"][..., WHATIF_FEATURES.index(name)]


def read_columns(observation: Observation) -> FeatureColumns:
    """All columns of an observation."""
    experts, arrived = observation["experts"], observation["arrived"]
    prompt, score, length = arrived.unbind(dim=-1)
    success, soft_change = whatif_column(observation, "own_success"), whatif_column(observation, "soft_change")
    own = score * success
    steady, growing, engine = (_take(experts, EXPERT_FEATURES, names) for names in (_STEADY, _GROWING, _ENGINE))
    tokens = ARRIVED_TABLE["prompt"].scale * prompt, ARRIVED_TABLE["predicted_length"].scale * length
    added = (
        torch.full_like(prompt, 1 / EXPERT_TABLE["waiting"].scale),
        (tokens[0] + tokens[1]) / kv_tokens(observation),
        tokens[0] / EXPERT_TABLE["prefill_backlog"].scale,
        tokens[1] / EXPERT_TABLE["decode_backlog"].scale,
        score / EXPERT_TABLE["score_present"].scale,
        (score - own) / EXPERT_TABLE["score_at_risk"].scale,
    )
    if "whatif" in observation:
        rolled, after, effect = (
            _take(observation["whatif"], WHATIF_FEATURES, names) for names in (_ROLLED, _ROLLED_AFTER, _EFFECT)
        )
    else:
        rolled, after, effect = (experts.new_zeros(*prompt.shape, len(names)) for names in (_ROLLED, _ROLLED_AFTER, _EFFECT))
    soft_after = rolled[..., :1] + (own + soft_change).unsqueeze(-1)
    scale = rolled.new_tensor(_ROLLED_SCALE)
    cluster = _cluster(observation)
    used_up, marginal = congestion(observation), predicted_marginal(observation)
    later = (growing + torch.stack(added, dim=-1), scale * torch.cat([soft_after, after], dim=-1))
    unbounded = [steady, growing, scale * rolled, *later, arrived, effect, torch.stack([used_up, 10 * used_up], dim=-1)]
    steady, before, changed, asked, effect, use = squash(torch.cat(unbounded, dim=-1)).split(_UNBOUNDED, dim=-1)
    state = torch.cat([steady, before, engine, cluster], dim=-1)
    surprise = score - expert_column(observation, "mean_score")
    told = torch.cat([asked, surprise.unsqueeze(-1), _pooled(score, surprise, length)], dim=-1)
    own_and_marginal = torch.stack([own, marginal], dim=-1)
    more = [observation[part] for part in ("information", "places") if part in observation]
    return FeatureColumns(
        state=state,
        choice=torch.cat([state, changed, told, effect, own_and_marginal, use, *more], dim=-1),
        request=torch.cat([told, engine, cluster[..., :_PACE], *more], dim=-1),
        marginal=marginal,
    )


def predicted_marginal(observation: Observation) -> Tensor:
    """(B, N) the roll-out's estimate of the marginal QoS; 0 without what-if results."""
    own = arrived_column(observation, "predicted_score") * whatif_column(observation, "own_success")
    return (own + whatif_column(observation, "soft_change")).clamp(-_BOUND, _BOUND)


def units(observation: Observation) -> tuple[Tensor, Tensor]:
    """The resources that the request would use at each expert, both (B, N), in units of 100 SLO.

    The first is the request's share of the batch time over its stay. The second is its share of the KV memory times its length of
    stay at the current pace.
    """
    prompt, length = (arrived_quantity(observation, name) for name in ("prompt", "predicted_length"))
    sequence, context, prefill = (expert_quantity(observation, f"{name}_time") for name in ("sequence", "context", "prefill"))
    time = length * (sequence + context * (prompt + length / 2)) + prefill * prompt
    pace = torch.maximum(expert_column(observation, "step_time"), expert_column(observation, "base_time"))
    return time / 100, (prompt + length / 2) / kv_tokens(observation) * length * pace / 100


def expert_time(observation: Observation) -> Tensor:
    """(B, N) the time that the request takes of each expert, SLO, whichever resource is scarce there (``sim.demand``)."""
    prompt, length = arrived_quantity(observation, "prompt"), arrived_quantity(observation, "predicted_length").clamp(min=1)
    sequence, context, prefill = (expert_quantity(observation, f"{name}_time") for name in ("sequence", "context", "prefill"))
    fixed = expert_column(observation, "base_time") - sequence
    held = prompt + length / 2
    own = (sequence + context * held + prefill * prompt / length).clamp(min=_LEAST)
    seats = torch.exp(_LN_SEATS * expert_column(observation, "max_running"))
    batch = torch.minimum(torch.minimum((FULL - fixed) / own, kv_tokens(observation) / held), seats)
    return length * (fixed / batch.clamp(min=1) + own)


def congestion(observation: Observation) -> Tensor:
    """(B, N) time times the reserved share of the KV memory: the quantity that ``impact_greedy`` prices (baselines)."""
    return units(observation)[0] * expert_column(observation, "kv_reserved")


def kv_tokens(observation: Observation) -> Tensor:
    """(B, N) KV capacity of each expert, tokens."""
    return KV_UNIT_TOKENS * torch.exp(_LN_CAPACITY * expert_column(observation, "kv_capacity"))


def _pooled(score: Tensor, surprise: Tensor, length: Tensor) -> Tensor:
    """(B, N, 6) the predictions for all experts together, given to each expert.

    Prediction errors of different experts are independent, while the true values are correlated through the request's difficulty.
    So the predictions for the other experts help to correct that for one.
    """
    spread = (score * score).mean(dim=-1)
    columns = [
        score.mean(dim=-1),
        surprise.mean(dim=-1),
        spread,
        score.amax(dim=-1),
        score.amin(dim=-1),
        squash(length).mean(dim=-1),
    ]
    return torch.stack(columns, dim=-1).unsqueeze(-2).expand(*score.shape, -1)


def _take(x: Tensor, known: Sequence[str], names: Sequence[str]) -> Tensor:
    """(..., len(names)) columns by name."""
    return x[..., [known.index(name) for name in names]]


def _cluster(observation: Observation) -> Tensor:
    """(B, N, cluster) the cluster's features, copied to each expert; gaps between arrivals times N: the gaps at one expert."""
    experts, cluster = observation["experts"], observation["cluster"]
    n = torch.full_like(cluster[..., :2], experts.shape[-2]).log()
    cluster = torch.cat([cluster[..., :2] + n, cluster[..., 2:]], dim=-1)
    return cluster.unsqueeze(-2).expand(*experts.shape[:-1], -1)
