"""The fitted weights as plain arrays, and what they say of statistics: NumPy alone, as requests are served with it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

MOST_STANDARDISED = 6.0
"""Statistics beyond so many standard deviations count as that many: nothing was learned there."""

_LEAST_SD, _MOST_SD = 0.05, 3.0

Floats = NDArray[np.float32]
_Float = TypeVar("_Float", np.float32, np.float64)


def within(values: NDArray[_Float], low: float, high: float) -> NDArray[_Float]:
    """``np.clip``, whose checks take longer than the small arrays of one request."""
    return np.minimum(np.maximum(values, low), high)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Raw:
    """Predictions before any correction, each (B, A)."""

    logit: NDArray[np.float64]  # of the quality
    log_length: NDArray[np.float64]
    log_sd: NDArray[np.float64]  # standard deviation of the log length


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weights:
    """A network of H hidden units over S statistics for A models; H is 0 for a linear predictor.

    Several networks are one of their joint width, whose second layer has a block for each (``models.predictors.fit``).
    Outputs are the logit of the quality, and mean and log standard deviation of the standardised log length, model by model.
    """

    mean: Floats  # (S,) of the statistics
    scale: Floats  # (S,)
    length_mean: Floats  # (A,) of the log length
    length_scale: Floats  # (A,)
    first: Floats  # (S, H)
    first_bias: Floats  # (H,)
    second: Floats  # (H, H)
    second_bias: Floats  # (H,)
    heads: Floats  # (H, 3 A)
    skip: Floats  # (S, 3 A)
    bias: Floats  # (3 A,)

    def standardise(self, statistics: NDArray[np.float64]) -> Floats:
        """(B, S) from (B, S)."""
        x = (statistics.astype(np.float32) - self.mean) / self.scale
        return within(x, -MOST_STANDARDISED, MOST_STANDARDISED)

    def outputs(self, x: Floats) -> Raw:
        """Predictions for standardised statistics (B, S)."""
        total = x @ self.skip
        if self.first_bias.size:
            h = np.maximum(x @ self.first + self.first_bias, 0)
            h = np.maximum(h @ self.second + self.second_bias, 0)
            total += h @ self.heads
        by_model = (total + self.bias).reshape(len(x), -1, 3).astype(np.float64)
        sd: NDArray[np.float64] = within(np.exp(np.minimum(by_model[..., 2], 10)), _LEAST_SD, _MOST_SD)
        return Raw(
            logit=by_model[..., 0],
            log_length=by_model[..., 1] * self.length_scale + self.length_mean,
            log_sd=sd * self.length_scale,
        )

    def arrays(self) -> dict[str, Floats]:
        """The arrays by name, as safetensors wants them: it writes the memory as it is."""
        return {field.name: np.ascontiguousarray(getattr(self, field.name)) for field in fields(self)}
