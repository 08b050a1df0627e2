"""Ridge regression on the statistics: what is fitted to fewer prompts than a network needs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_PENALTIES = np.geomspace(1, 1e4, 25)
_LOGIT_PER_SCORE = 4.0  # slope of the logit at one half; Platt scaling finds the rest
_LEAST_RESIDUAL = 0.05


def fit_ridge(
    x: NDArray[np.float64], score: NDArray[np.float64], log_length: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Linear weights (S, 3 A) and bias (3 A,) of the outputs of ``models.predictors.weights.Weights``.

    The penalty of each target is that of the least generalised cross-validation error (Golub, Heath and Wahba 1979).

    Args:
        x: (P, S) standardised statistics.
        score: (P, A) in [0, 1], NaN where a model was not run.
        log_length: (P, A) standardised log lengths, NaN where there is none.
    """
    models = score.shape[1]
    weights, bias = np.zeros((x.shape[1], models, 3)), np.zeros((models, 3))
    for a in range(models):
        slope, level, _ = _regress(x, score[:, a])
        weights[:, a, 0], bias[a, 0] = _LOGIT_PER_SCORE * slope, _LOGIT_PER_SCORE * (level - 0.5)
        slope, level, residual = _regress(x, log_length[:, a])
        weights[:, a, 1], bias[a, 1] = slope, level
        bias[a, 2] = np.log(max(residual, _LEAST_RESIDUAL))
    return weights.reshape(x.shape[1], -1), bias.ravel()


def _regress(x: NDArray[np.float64], target: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, float]:
    """Slopes, level and the standard deviation of the residuals; nothing is learned from no targets."""
    there = np.isfinite(target)
    if not there.any():
        return np.zeros(x.shape[1]), 0.0, 1.0
    inputs, y = x[there], target[there]
    middle, level = inputs.mean(axis=0), float(y.mean())
    u, s, vt = np.linalg.svd(inputs - middle, full_matrices=False)
    along, n = u.T @ (y - level), len(y)
    best: tuple[float, NDArray[np.float64], float] | None = None
    for penalty in _PENALTIES:
        shrink = s**2 / (s**2 + penalty)
        residual = y - level - u @ (shrink * along)
        left = max(n - 1 - shrink.sum(), 0.5)
        error = float(n * (residual @ residual) / left**2)
        if best is None or error < best[0]:
            best = error, vt.T @ (s / (s**2 + penalty) * along), float(np.sqrt(residual @ residual / left))
    assert best is not None
    return best[1], level - float(middle @ best[1]), best[2]
