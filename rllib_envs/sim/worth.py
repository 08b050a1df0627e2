"""What predictions are worth, as a router can see it: how they vary, what they say of themselves, and how they have erred."""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.sim.jit import kernel, kernel_inlined
from rllib_envs.sim.rows import INFORMATION_SCALE

_GAIN = 0.01  # of the moving averages, from the hundredth sample on; before, they are means

WORTH = np.dtype(
    [
        ("score", "f8"), ("score_square", "f8"),  # averages of predicted scores, and of squared differences to them
        ("log_tokens", "f8"), ("log_tokens_square", "f8"),  # the same of the log of predicted lengths
    ],
    align=True,
)  # fmt: skip


class Worth(NamedTuple):
    """Averages over the requests of B clusters so far."""

    averages: NDArray[np.void]  # (B, N) WORTH
    counted: NDArray[np.int32]  # (B,) requests whose predictions are included


def allocate_worth(batch: int, n_experts: int) -> Worth:
    """Allocate the records of B clusters."""
    return Worth(averages=np.zeros((batch, n_experts), WORTH), counted=np.zeros(batch, np.int32))


def reset_worth(worth: Worth, cluster: int) -> None:
    """Forget what one cluster has seen."""
    worth.averages[cluster] = np.zeros((), WORTH)
    worth.counted[cluster] = 0


@kernel
def _moved(mean, square, value, gain):
    """A moving average and that of squared differences to it, with one more value (Welford, exponentially weighted)."""
    difference = value - mean
    mean += gain * difference
    return mean, (1.0 - gain) * (square + gain * difference * difference)


@kernel_inlined
def write_worth(worth, errors, workload, b, r, rows):
    """Count the predictions for request r of cluster b, once, and write its INFORMATION_ROW records ``rows`` (B, N).

    ``errors`` (B, N): what calibration has seen of their errors (ERRORS).
    """
    present = r < workload.total[b]
    new = present and worth.counted[b] <= r
    for e in range(rows.shape[1]):
        record, row = worth.averages[b, e], rows[b, e]
        if new:
            gain = max(_GAIN, 1.0 / (r + 1))
            score, log_tokens = workload.predicted_score[b, r, e], math.log(workload.predicted_tokens[b, r, e])
            record.score, record.score_square = _moved(record.score, record.score_square, score, gain)
            record.log_tokens, record.log_tokens_square = _moved(record.log_tokens, record.log_tokens_square, log_tokens, gain)
        row.predicted_log_sd = workload.predicted_log_sd[b, r, e] / INFORMATION_SCALE.predicted_log_sd if present else 0.0
        row.score_spread = math.sqrt(record.score_square) / INFORMATION_SCALE.score_spread
        row.length_spread = math.sqrt(record.log_tokens_square) / INFORMATION_SCALE.length_spread
        row.length_error = math.sqrt(errors[b, e].square) / INFORMATION_SCALE.length_error
    if new:
        worth.counted[b] = r + 1
