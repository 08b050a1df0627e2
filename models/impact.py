"""The action impact estimator: the effect of sending the arrived request to an expert on the QoS of all requests.

The roll-out (``rllib_envs.sim.whatif``) gives a first estimate; a small network corrects it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.features import (
    CHOICE_COLUMNS,
    FeatureColumns,
    Observation,
    arrived_column,
    arrived_quantity,
    expert_quantity,
    whatif_column,
)
from models.learned_range import LearnedRange
from rllib_envs.sim.rows import REQUEST_TABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The estimate for each action and its parts; all (B, N), a column for each expert."""

    latency: Tensor  # predicted latency per token of the request, in units of the SLO (at most 10)
    in_time: Tensor  # predicted probability that it meets the SLO
    quality: Tensor  # its predicted score
    own: Tensor  # quality * in_time: its expected QoS
    others: Tensor  # change of the soft QoS of in-flight requests
    newly_late: Tensor  # expected number of in-flight requests that miss the SLO because of it
    lost: Tensor  # their predicted scores: the QoS that is lost with them
    correction: Tensor  # the learned correction
    marginal: Tensor  # predicted marginal QoS: own + others + correction


class ImpactEstimator(nn.Module):
    """Predicted marginal QoS of sending the request to each expert: the roll-out's estimate plus a learned correction.

    The marginal QoS of an action is the change that it makes to the cluster's realised QoS, with no further arrivals. The
    roll-out predicts ``predicted score * P(in time) + change of the soft QoS of in-flight requests``, with predicted lengths
    and scores and nominal engines. The correction is fitted by regression to the true marginal QoS of ALL actions, which the
    simulator computes. It is 0 before training.

    Args:
        hidden: width of the correction's layers; 0 for none.
        embedding: width of an encoder's embedding of each choice, an optional input of the correction (``GatedMLP``); 0 for none.
        columns: columns of ``FeatureColumns.choice``.
        bounded: the correction fades out beyond the inputs of training (``LearnedRange``).

    Shapes:
        - columns: ``read_columns`` of the observation; embedding: (B, N, embedding)
        - output: (B, N)
    """

    def __init__(self, *, hidden: int = 128, embedding: int = 0, columns: int = CHOICE_COLUMNS, bounded: bool = False) -> None:
        super().__init__()
        self.correction = GatedMLP(columns, hidden, 1, embedding, bounded=bounded) if hidden else None

    def forward(self, columns: FeatureColumns, embedding: Tensor | None = None) -> Tensor:
        """(B, N) predicted marginal QoS."""
        return columns.marginal + self.correct(columns, embedding)

    def correct(self, columns: FeatureColumns, embedding: Tensor | None = None) -> Tensor:
        """(B, N) the learned part."""
        if self.correction is None:
            return torch.zeros_like(columns.marginal)
        return self.correction(columns.choice, embedding).squeeze(-1)

    def explain(self, observation: Observation, columns: FeatureColumns, embedding: Tensor | None = None) -> Explanation:
        """The estimate of every action and its parts."""
        in_time, quality = whatif_column(observation, "own_success"), arrived_column(observation, "predicted_score")
        others, correction = whatif_column(observation, "soft_change"), self.correct(columns, embedding)
        return Explanation(
            latency=whatif_column(observation, "own_latency"),
            in_time=in_time,
            quality=quality,
            own=quality * in_time,
            others=others,
            newly_late=whatif_column(observation, "new_violations"),
            lost=(-whatif_column(observation, "hard_change")).clamp(min=0),
            correction=correction,
            marginal=columns.marginal + correction,
        )


class GatedMLP(nn.Module):
    """Two hidden layers with an embedding as side input to the first, through weights that are 0 before training.

    So the network starts as if it had no embedding. Training adds the embedding's effect.

    Args:
        columns: width of the input.
        hidden: width of the hidden layers.
        out: width of the output, which is 0 before training.
        embedding: width of the embedding; 0 for none.
        bounded: the output fades to 0 beyond the inputs of training (``LearnedRange``).
    """

    def __init__(self, columns: int, hidden: int, out: int, embedding: int = 0, *, bounded: bool = False) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(columns, hidden), nn.Linear(hidden, hidden), zero_linear(hidden, out)
        self.branch = zero_linear(embedding, hidden, bias=False) if embedding else None
        self.range = LearnedRange(columns) if bounded else None

    def forward(self, columns: Tensor, embedding: Tensor | None = None) -> Tensor:
        """(..., out) of (..., columns) and (..., embedding)."""
        x = self.first(columns)
        if self.branch is not None and embedding is not None:
            x = x + self.branch(embedding)
        out = self.last(self.second(x.relu()).relu())
        return out if self.range is None else out * self.range(columns)


def zero_linear(width: int, out: int, *, bias: bool = True) -> nn.Linear:
    """A linear layer that returns 0 before training."""
    layer = nn.Linear(width, out, bias=bias)
    nn.init.zeros_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def paper_impact(observation: Observation) -> Tensor:
    """(B, N) the closed form of arXiv 2508.00234: predicted QoS of running requests that the newcomer would push past the SLO.

    ``sum_j s_j * 1[l_now,j + D_j > L]``, ``D_j = (k1*p_i + k2*sum_{k=1..min(d_j - o_j, d_i)-1} (p_i + k)) / d_j``: see
    ``rllib_envs.reward.paper_impact``, which uses the true lengths. Here they are predicted, and requests beyond the slots do not
    count. k1 and k2 are the engine's prefill time per token and its decode time per context token. Requests without a token yet
    have no latency per token; they are left out, as in the paper. A request that recomputes its context after a preemption counts
    here, but not there.
    """
    columns = zip(REQUEST_TABLE.items(), observation["running"].unbind(dim=-1), strict=True)
    told = {name: feature.scale * column for (name, feature), column in columns}  # each (B, N, slots)
    prompt, length = (arrived_quantity(observation, name).unsqueeze(-1) for name in ("prompt", "predicted_length"))
    k1, k2 = (expert_quantity(observation, name).unsqueeze(-1) for name in ("prefill_time", "context_time"))  # of the SLO
    shared = (torch.minimum(told["predicted_length"] - told["generated"], length) - 1).clamp(min=0)
    slowed = k1 * prompt + k2 * (shared * prompt + shared * (shared + 1) / 2)
    late = told["latency_so_far"] + slowed / told["predicted_length"].clamp(min=1) > 1
    counted = (observation["running_mask"] > 0) & (told["generated"] > 0)
    return (told["predicted_score"] * (late & counted)).sum(dim=-1)
