"""Predicted values by prompt and expert: from a file's own keys, from a fitted predictor, or drawn around the truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predicted:
    """Predictions for M prompts at N experts."""

    score: NDArray[np.float64]  # (M, N) in [0, 1]: the expected score
    output_tokens: NDArray[np.float64]  # (M, N) >= 1: the expected length, so the mean and not the median
    log_sd: NDArray[np.float64]  # (M, N) >= 0: standard deviation of the log length about its prediction

    def at(self, rows: NDArray[np.integer[Any]]) -> Self:
        """The predictions for some of the prompts, in the order of ``rows``."""
        return type(self)(score=self.score[rows], output_tokens=self.output_tokens[rows], log_sd=self.log_sd[rows])
