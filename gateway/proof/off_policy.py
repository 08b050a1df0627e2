"""What another policy's decisions would have brought, from a log of one that chose at random: doubly robust.

Of each request alone: what if it had gone elsewhere, and all else had been as it was. What that would have done to later requests
is not in the log; the simulator says it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuning.metrics.statistics import Interval, mean_interval

_BLOCKS = 30
_FEW = 100  # requests, below which there is no estimate


@dataclass(frozen=True, slots=True, kw_only=True)
class OffPolicy:
    """Mean QoS of the requests that were decided at random."""

    requests: int  # of them
    logged: Interval  # what they got
    estimate: Interval  # what the other policy's choices would have got
    difference: Interval
    effective: float  # (sum of weights)^2 / sum of weights^2: requests that the estimate rests on beside the model


def doubly_robust(
    reward: NDArray[np.float64],
    probability: NDArray[np.float64],
    same: NDArray[np.bool_],
    model_taken: NDArray[np.float64],
    model_other: NDArray[np.float64],
) -> OffPolicy | None:
    """Estimate the mean reward of another policy's actions (Dudik, Langford and Li, 2011, arXiv 1103.4601, equation 6).

    It is the model's value of the other action. Where both took the same, the model's error is added, over the probability.
    With the true probabilities its mean is right whatever the model says; a good model makes it narrow. Requests near each other
    in time depend on each other, so the interval is that of the means of consecutive blocks.

    Args:
        reward: (M,) of the actions taken, in order of time.
        probability: (M,) of those actions under the policy that took them.
        same: (M,) whether the other policy takes the same action.
        model_taken: (M,) reward of the action taken, as a model says that has not seen it.
        model_other: (M,) likewise of the other policy's action.

    Returns:
        The estimate; None where hardly any action was drawn at random (a probability below 1), so a log cannot tell.
    """
    drawn = probability < 1
    count = int(drawn.sum())
    if count < _FEW:
        return None
    reward, probability, same = reward[drawn], probability[drawn], same[drawn]
    weight = np.where(same, 1 / np.maximum(probability, 1e-12), 0.0)
    value = model_other[drawn] + weight * (reward - model_taken[drawn])
    squares = float(np.square(weight).sum())
    return OffPolicy(
        requests=count,
        logged=_interval(reward),
        estimate=_interval(value),
        difference=_interval(value - reward),
        effective=float(weight.sum()) ** 2 / squares if squares > 0 else 0.0,
    )


def _interval(values: NDArray[np.float64]) -> Interval:
    """Of the mean, from blocks of the same size; the rest of the values shifts the mean alone."""
    size = max(values.size // _BLOCKS, 1)
    blocks = values[: values.size // size * size].reshape(-1, size).mean(axis=1)
    return Interval(mean=float(values.mean()), half_width=mean_interval(blocks.tolist()).half_width)
