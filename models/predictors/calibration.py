"""What makes out-of-fold predictions honest: Platt scaling, coverage of the standard deviation, and the mean length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.predictors.weights import within

COVERAGE = 0.8
Z_OF_COVERAGE = 1.2815515594  # a normal variable is within it in 80 % of cases
_NEWTON_STEPS = 50
_RIDGE = 1e-3  # keeps Platt's slope finite where quality is told apart without error
_MOST_LOG_SD_FACTOR = 10.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corrections:
    """The corrections of A models, for all prompts the same (A,), or those of each of P prompts (P, A)."""

    slope: NDArray[np.float64]  # of the logit
    offset: NDArray[np.float64]
    sd_factor: NDArray[np.float64]  # of the standard deviation of the log length
    smearing: NDArray[np.float64]  # mean length over exp(predicted log length)

    def score(self, logit: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., A) probability."""
        return 1 / (1 + np.exp(-within(self.slope * logit + self.offset, -30, 30)))


def fit_corrections(
    logit: NDArray[np.float64],
    log_length: NDArray[np.float64],
    log_sd: NDArray[np.float64],
    true_score: NDArray[np.float64],
    true_log_length: NDArray[np.float64],
) -> Corrections:
    """Fit them to predictions for prompts that the predictor has not seen.

    - Platt: the probability is sigmoid(slope * logit + offset), by maximum likelihood (Platt 1999).
    - Coverage: factors of the standard deviation with which 80 % of the errors are within 1.28 of it.
    - Smearing: the factor of exp(log length) that makes the predicted lengths sum to the true ones (Duan 1983). It is a ratio of
      sums, as errors are larger for some prompts than for others.

    Args:
        logit: (P, A) predicted logit of the quality.
        log_length: (P, A) predicted log length.
        log_sd: (P, A) predicted standard deviation of its error.
        true_score: (P, A) in [0, 1], NaN where a model was not run.
        true_log_length: (P, A), NaN where a model was not run.
    """
    models = logit.shape[1]
    slope, offset = np.ones(models), np.zeros(models)
    sd_factor, smearing = np.ones(models), np.ones(models)
    for a in range(models):
        scored, timed = np.isfinite(true_score[:, a]), np.isfinite(true_log_length[:, a])
        if scored.any():
            slope[a], offset[a] = _platt(logit[scored, a], true_score[scored, a])
        if timed.any():
            error = np.abs(true_log_length[timed, a] - log_length[timed, a]) / log_sd[timed, a]
            sd_factor[a] = np.clip(np.quantile(error, COVERAGE) / Z_OF_COVERAGE, 1 / _MOST_LOG_SD_FACTOR, _MOST_LOG_SD_FACTOR)
            smearing[a] = np.exp(true_log_length[timed, a]).sum() / np.exp(log_length[timed, a]).sum()
    return Corrections(slope=slope, offset=offset, sd_factor=sd_factor, smearing=smearing)


def _platt(logit: NDArray[np.float64], score: NDArray[np.float64]) -> tuple[float, float]:
    """Newton's method, with steps halved until the likelihood rises."""
    x = np.stack([logit, np.ones_like(logit)], axis=1)
    w = np.array([1.0, 0.0])

    def objective(w: NDArray[Any]) -> float:
        z = x @ w
        return float((np.logaddexp(0, z) - score * z).sum() + _RIDGE * (w[0] - 1) ** 2)

    value = objective(w)
    for _ in range(_NEWTON_STEPS):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (p - score) + np.array([2 * _RIDGE * (w[0] - 1), 0.0])
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag([2 * _RIDGE, 1e-9])
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-6 and objective(w - size * step) > value:
            size /= 2
        if size <= 1e-6:
            break
        w = w - size * step
        before, value = value, objective(w)
        if before - value < 1e-10 * max(abs(value), 1.0):
            break
    return float(w[0]), float(w[1])
