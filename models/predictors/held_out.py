"""How good predictions are on prompts that the predictor has not seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from models.predictors.calibration import Z_OF_COVERAGE

_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Figures of predictions, means over models where there are several. NaN where nothing can be said."""

    prompts: int
    auc: float  # of the quality, where every score is 0 or 1
    brier: float  # mean squared error of the quality
    ece: float  # expected calibration error of the quality, in ten bins of equal size
    log_length_r2: float
    log_length_mae: float
    tokens_ratio: float  # predicted tokens, summed, over the true ones
    coverage: float  # share of log lengths within the interval that shall hold 80 %
    argmax: float  # mean score at the model with the best predicted one, over prompts that all models were run on
    best_single: float  # mean score there of the model that is best in the train split
    oracle: float  # mean of the best score of each prompt there


def figures_of(
    score: NDArray[np.float64],
    output_tokens: NDArray[np.float64],
    log_sd: NDArray[np.float64],
    log_median: NDArray[np.float64],
    true_score: NDArray[np.float64],
    true_log_length: NDArray[np.float64],
    best: int,
) -> Figures:
    """Compare predictions with outcomes, all (P, A); outcomes are NaN where a model was not run, ``best`` is the best model.

    R2 and the absolute error are those of the median (``log_median``), which is what a log length is predicted by.
    """
    models = range(score.shape[1])
    complete = np.isfinite(true_score).all(axis=1)
    error = true_log_length - log_median
    there = np.isfinite(true_log_length)
    known = true_score[complete]
    return Figures(
        prompts=len(score),
        auc=_mean([_auc(score[:, a], true_score[:, a]) for a in models]),
        brier=_mean([_mean_square(score[:, a] - true_score[:, a]) for a in models]),
        ece=_mean([_ece(score[:, a], true_score[:, a]) for a in models]),
        log_length_r2=_mean([_r2(error[:, a], true_log_length[:, a]) for a in models]),
        log_length_mae=float(np.abs(error[there]).mean()) if there.any() else np.nan,
        tokens_ratio=float(output_tokens[there].sum() / np.exp(true_log_length[there]).sum()) if there.any() else np.nan,
        coverage=float((np.abs(error[there]) <= Z_OF_COVERAGE * log_sd[there]).mean()) if there.any() else np.nan,
        argmax=float(known[np.arange(len(known)), score[complete].argmax(axis=1)].mean()) if complete.any() else np.nan,
        best_single=float(known[:, best].mean()) if complete.any() else np.nan,
        oracle=float(known.max(axis=1).mean()) if complete.any() else np.nan,
    )


def _mean(values: list[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else np.nan


def _auc(score: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    there = np.isfinite(truth)
    truth, score = truth[there], score[there]
    right = truth == 1
    n, m = int(right.sum()), int((truth == 0).sum())
    if not n or not m or n + m < len(truth):
        return np.nan
    ranks = np.asarray(rankdata(score))
    return float((ranks[right].sum() - n * (n + 1) / 2) / (n * m))


def _ece(score: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    there = np.isfinite(truth)
    order = np.argsort(score[there], kind="stable")
    bins = zip(np.array_split(score[there][order], _BINS), np.array_split(truth[there][order], _BINS), strict=True)
    return sum(abs(float(s.mean() - t.mean())) * s.size for s, t in bins if s.size) / max(int(there.sum()), 1)


def _r2(error: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    known = truth[np.isfinite(truth)]
    return 1 - _mean_square(error) / float(known.var()) if known.size and known.var() > 0 else np.nan


def _mean_square(error: NDArray[np.float64]) -> float:
    known = error[np.isfinite(error)]
    return float(np.square(known).mean()) if known.size else np.nan
