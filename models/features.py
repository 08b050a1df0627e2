"""What the networks read of an observation: columns for each expert, as it is, as it would be, and as a choice.

All of it is computed from the observation alone (``EdgeRoutingEnv``), for any number of experts, and in the same order for each:
permuting the experts permutes the columns. Unbounded quantities go through ``squash``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rllib_envs.observation import ARRIVED_FEATURES, CLUSTER_FEATURES, EXPERT_FEATURES
from rllib_envs.sim.whatif import WHATIF_FEATURES

Observation = Mapping[str, Tensor]

_STEADY = ("running", "kv_used", "step_time", "max_budget_used", "mean_budget_used")  # as they are, whoever is sent there
_GROWING = ("waiting", "kv_reserved", "prefill_backlog", "decode_backlog", "score_present", "score_at_risk")
_ROLLED = ("soft_before", "drain_before_s", "stay_1_before", "stay_4_before", "stay_16_before")
_ROLLED_AFTER = ("drain_s", "stay_1", "stay_4", "stay_16")
_EFFECT = ("own_latency", "own_success", "soft_change", "hard_change", "new_violations", "least_slack", "slack_sd")
_ENGINE = (
    "base_time", "sequence_time", "context_time", "prefill_time", "kv_capacity", "max_running", "mean_score", "length_drift",
    "step_drift",
)  # fmt: skip
_ROLLED_SCALE = (0.25, 0.1, 0.25, 0.25, 0.25)
_KV_UNIT_TOKENS = 16_384  # of EXPERT_FEATURES' kv_capacity, which is the logarithm to base 16
_LN_16 = math.log(16)  # exp2 has no counterpart in ONNX
_BOUND = 20.0  # no request is worth more than 1; what ruins twenty others need not look worse still

_CHANGING = len(_GROWING) + len(_ROLLED)
_CONTEXT = len(_ENGINE) + len(CLUSTER_FEATURES)

STATE_COLUMNS = len(_STEADY) + _CHANGING + _CONTEXT
"""Columns of ``Columns.state``."""

CHOICE_COLUMNS = STATE_COLUMNS + _CHANGING + len(ARRIVED_FEATURES) + len(_EFFECT) + 5
"""Columns of ``Columns.choice``."""

REQUEST_COLUMNS = len(ARRIVED_FEATURES) + 1 + _CONTEXT - (len(CLUSTER_FEATURES) - 2)
"""Columns of ``Columns.request``."""


class Columns(NamedTuple):
    """What the networks read, for each of N experts."""

    state: Tensor  # (B, N, STATE_COLUMNS) the expert as it is: load, what the roll-out predicts of it, engine, the cluster's load
    choice: Tensor  # (B, N, CHOICE_COLUMNS) sending the request there: the expert before and after, and what that does
    request: Tensor  # (B, N, REQUEST_COLUMNS) what no decision has an influence on: request, engine, rate of arrivals
    marginal: Tensor  # (B, N) the roll-out's estimate of the marginal QoS; 0 where there are no what-if results
    congestion: Tensor  # (B, N) what the request would use up (``congestion``)


def squash(x: Tensor) -> Tensor:
    """``sign(x) * log(1 + |x|)``: near the identity around 0, so that outliers stay tame."""
    return x.sign() * x.abs().log1p()


def expert_column(observation: Observation, name: str) -> Tensor:
    """(B, N) one of EXPERT_FEATURES."""
    return observation["experts"][..., EXPERT_FEATURES.index(name)]


def arrived_column(observation: Observation, name: str) -> Tensor:
    """(B, N) one of ARRIVED_FEATURES."""
    return observation["arrived"][..., ARRIVED_FEATURES.index(name)]


def whatif_column(observation: Observation, name: str) -> Tensor:
    """(B, N) one of WHATIF_FEATURES; 0 where the observation has no what-if results."""
    if "whatif" not in observation:
        return torch.zeros_like(observation["experts"][..., 0])
    return observation["whatif"][..., WHATIF_FEATURES.index(name)]


def read_columns(observation: Observation) -> Columns:
    """All columns of an observation."""
    experts, arrived = observation["experts"], observation["arrived"]
    prompt, score, length = arrived.unbind(dim=-1)
    success, soft_change = whatif_column(observation, "own_success"), whatif_column(observation, "soft_change")
    own = score * success
    steady, growing, engine = (_take(experts, EXPERT_FEATURES, names) for names in (_STEADY, _GROWING, _ENGINE))
    kv_tokens = _KV_UNIT_TOKENS * torch.exp(_LN_16 * expert_column(observation, "kv_capacity"))
    added = (
        torch.full_like(prompt, 1 / 32),
        (1024 * prompt + 256 * length) / kv_tokens,
        prompt / 2,
        length / 4,
        score / 8,
        (score - own) / 8,
    )
    if "whatif" in observation:
        rolled, after, effect = (
            _take(observation["whatif"], WHATIF_FEATURES, names) for names in (_ROLLED, _ROLLED_AFTER, _EFFECT)
        )
    else:
        rolled, after, effect = (experts.new_zeros(*prompt.shape, len(names)) for names in (_ROLLED, _ROLLED_AFTER, _EFFECT))
    soft_after = rolled[..., :1] + (own + soft_change).unsqueeze(-1)
    scale = rolled.new_tensor(_ROLLED_SCALE)
    changing = squash(
        torch.stack(
            [
                torch.cat([growing, scale * rolled], dim=-1),
                torch.cat([growing + torch.stack(added, dim=-1), scale * torch.cat([soft_after, after], dim=-1)], dim=-1),
            ]
        )
    )
    cluster = _cluster(observation)
    used_up = congestion(observation)
    marginal = (own + soft_change).clamp(-_BOUND, _BOUND)
    state = torch.cat([squash(steady), changing[0], engine, cluster], dim=-1)
    surprise = score - expert_column(observation, "mean_score")
    told = torch.cat([squash(arrived), surprise.unsqueeze(-1)], dim=-1)
    more = torch.stack([own, marginal, squash(used_up), squash(10 * used_up)], dim=-1)
    return Columns(
        state=state,
        choice=torch.cat([state, changing[1], told, squash(effect), more], dim=-1),
        request=torch.cat([told, engine, cluster[..., :2]], dim=-1),
        marginal=marginal,
        congestion=used_up,
    )


def congestion(observation: Observation) -> Tensor:
    """(B, N) what the request would use up at each expert, in the form that ``rllib_envs.baselines.impact_greedy`` prices.

    Its share of the batch's time, in units of 100 SLO, times the share of the KV memory that those present will need.
    """
    length = arrived_column(observation, "told_length")
    sequence = expert_column(observation, "sequence_time") / 32
    context = expert_column(observation, "context_time") * (arrived_column(observation, "prompt") + length / 8) / 16
    prefill = expert_column(observation, "prefill_time") * arrived_column(observation, "prompt")
    return (256 * length * (sequence + context) + prefill) / 100 * expert_column(observation, "kv_reserved")


def _take(x: Tensor, known: Sequence[str], names: Sequence[str]) -> Tensor:
    """(..., len(names)) columns by name."""
    return x[..., [known.index(name) for name in names]]


def _cluster(observation: Observation) -> Tensor:
    """(B, N, cluster) the cluster's features, told to each expert; gaps between arrivals times N: what one expert sees."""
    experts, cluster = observation["experts"], observation["cluster"]
    n = torch.full_like(cluster[..., :2], experts.shape[-2]).log()
    cluster = torch.cat([cluster[..., :2] + n, cluster[..., 2:]], dim=-1)
    return cluster.unsqueeze(-2).expand(*experts.shape[:-1], -1)
