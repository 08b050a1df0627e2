"""Predicted values by prompt and expert: from a file's own keys, from a fitted predictor, or drawn around the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_MOST_LOG_SD = 1.0  # lengths that spread more are not log-normal


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predicted:
    """Predictions for M prompts at N experts."""

    score: NDArray[np.float64]  # (M, N) in [0, 1]: the expected score
    output_tokens: NDArray[np.float64]  # (M, N) >= 1: the expected length, so the mean
    log_sd: NDArray[np.float64]  # (M, N) >= 0: standard deviation of the log length about its prediction
    log_median: NDArray[np.float64] | None = None  # (N,) see ``median``

    @property
    def median(self) -> NDArray[np.float64]:
        """(N,) the median of log(true / output_tokens) at each expert if the predictions are right.

        ``log_median`` if that is known. If not, lengths are taken as log-normal, whose mean is above the median.
        """
        if self.log_median is not None:
            return self.log_median
        return -np.square(np.minimum(self.log_sd, _MOST_LOG_SD)).mean(axis=0) / 2

    def at(self, rows: NDArray[np.integer[Any]]) -> Self:
        """The predictions for some of the prompts, in the order of ``rows``."""
        return replace(self, score=self.score[rows], output_tokens=self.output_tokens[rows], log_sd=self.log_sd[rows])
