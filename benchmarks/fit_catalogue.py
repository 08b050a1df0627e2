"""Fit the constants of the synthetic catalogue to the public ZeroEval extract, and print file against model.

Run it:  python benchmarks/fit_catalogue.py zeroeval_gsm_crux_math.jsonl.gz
Expect:  the four fitted constants of ``rllib_envs/workload/catalogue.py`` to three digits, that of ``lengths.py``, and the table
         of the catalogue's docstring.

The file: JSONL, derived from ``result_dirs/{gsm,crux,math-l5}/<model>.json`` of github.com/WildEval/ZeroEval (Apache-2.0);
see docs/data.md for the format. All moments of the model are integrals over the shared factor: given it, models are independent.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.special import ndtr, ndtri

from rllib_envs.workload import catalogue, lengths
from rllib_envs.workload.prompt_files import read_prompt_file

POOL = (
    "gemma-2-2b-it",
    "Phi-3.5-mini-instruct",
    "Qwen2-7B-Instruct",
    "Meta-Llama-3-8B-Instruct",
    "Meta-Llama-3.1-8B-Instruct",
    "gemma-2-9b-it",
    "Yi-1.5-9B-Chat",
)
"""The file's complete models of at most 9 billion parameters (rounded)."""

_NODES, _MASSES = np.polynomial.hermite_e.hermegauss(120)
_WEIGHTS = _MASSES / _MASSES.sum()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """What is compared between file and model; means over models or pairs of models."""

    score_correlation: float  # of 0/1 scores, between models
    oracle: float  # mean over prompts of the best model's 0/1 score
    length_correlation: float  # of lengths in tokens, between models
    score_length_correlation: float  # of 0/1 score and length in tokens, the same model
    length_log_sd: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The constants of the catalogue."""

    shared_variance: float
    length_log_sd: float
    length_ease: float
    length_shared: float


def read_pool(path: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(P, 7) 0/1 scores and (P, 7) output tokens of the pool's models."""
    file = read_prompt_file(str(path))
    columns = [file.models.index(model) for model in POOL]
    return file.score[:, columns], file.output_tokens[:, columns]


def moments(score: NDArray[np.float64], output_tokens: NDArray[np.float64]) -> Moments:
    """Moments of (P, N) 0/1 scores and (P, N) lengths."""
    n = score.shape[1]
    pairs = ~np.eye(n, dtype=bool)
    both = np.corrcoef(score.T, output_tokens.T)
    return Moments(
        score_correlation=float(both[:n, :n][pairs].mean()),
        oracle=float(score.max(axis=1).mean()),
        length_correlation=float(both[n:, n:][pairs].mean()),
        score_length_correlation=float(np.diag(both[:n, n:]).mean()),
        length_log_sd=float(np.log(output_tokens).std(axis=0).mean()),
    )


def noise_log_sd(output_tokens: NDArray[np.float64]) -> float:
    """Log standard deviation of one model's length about what models share, from the middle half of the log ratios of pairs."""
    log_tokens = np.log(output_tokens)
    first, second = np.triu_indices(log_tokens.shape[1], 1)
    low, high = np.quantile(log_tokens[:, first] - log_tokens[:, second], (0.25, 0.75), axis=0)
    return float(((high - low) / (ndtri(0.75) - ndtri(0.25))).mean() / np.sqrt(2))


def model_moments(mean_score: NDArray[np.float64], fit: Fit) -> Moments:
    """The same moments of the synthetic catalogue, exactly."""
    v, s = fit.shared_variance, fit.length_log_sd
    correct = ndtr((ndtri(mean_score) + np.sqrt(v) * _NODES[:, None]) / np.sqrt(1 - v))  # (nodes, N), given the shared factor
    sd = np.sqrt(mean_score * (1 - mean_score))
    pairs = ~np.eye(len(mean_score), dtype=bool)
    score_covariance = (correct * _WEIGHTS[:, None]).T @ correct - np.outer(mean_score, mean_score)
    relative_length = np.exp(-s * fit.length_ease * _NODES - (s * fit.length_ease) ** 2 / 2)  # E[length | factor] / mean
    length_covariance = _WEIGHTS @ (correct * relative_length[:, None]) - mean_score
    length_cv = np.sqrt(np.expm1(s**2))
    return Moments(
        score_correlation=float((score_covariance / np.outer(sd, sd))[pairs].mean()),
        oracle=float(1 - _WEIGHTS @ np.prod(1 - correct, axis=1)),
        length_correlation=float(np.expm1(s**2 * (fit.length_ease**2 + fit.length_shared**2)) / np.expm1(s**2)),
        score_length_correlation=float((length_covariance / sd).mean() / length_cv),
        length_log_sd=s,
    )


def fit_constants(mean_score: NDArray[np.float64], target: Moments) -> Fit:
    """Constants for (N,) mean scores and the moments of a file.

    The shared variance minimises the summed squared errors of score correlation and oracle (one factor cannot meet both);
    the lengths' constants meet their moments exactly.
    """
    s = target.length_log_sd

    def with_(v: float, ease: float) -> Moments:
        return model_moments(mean_score, Fit(shared_variance=v, length_log_sd=s, length_ease=ease, length_shared=0.0))

    def score_error(v: float) -> float:
        model = with_(v, 0.0)
        return (model.score_correlation - target.score_correlation) ** 2 + (model.oracle - target.oracle) ** 2

    def length_error(ease: float) -> float:
        return with_(v, ease).score_length_correlation - target.score_length_correlation

    found: Any = minimize_scalar(score_error, bounds=(0.05, 0.97), method="bounded", options={"xatol": 1e-6})
    v = float(found.x)
    ease: float = cast(Any, brentq(length_error, 0.0, 1.0))
    log_correlation = np.log1p(target.length_correlation * np.expm1(s**2)) / s**2
    return Fit(shared_variance=v, length_log_sd=s, length_ease=ease, length_shared=float(np.sqrt(log_correlation - ease**2)))


def main() -> None:
    """Print the fit, the moments of file and model, and the per-model figures the presets use."""
    score, output_tokens = read_pool(Path(sys.argv[1]))
    target = moments(score, output_tokens)
    fit = fit_constants(score.mean(axis=0), target)
    for name, value in asdict(fit).items():
        print(f"{name:26} {value:8.4f}   shipped {getattr(catalogue, name.upper()):.4f}")
    noise = noise_log_sd(output_tokens)
    print(f"{'length_noise_log_sd':26} {noise:8.4f}   shipped {lengths.LENGTH_NOISE_LOG_SD:.4f} (for given lengths)")
    model = asdict(model_moments(score.mean(axis=0), fit))
    for name, value in asdict(target).items():
        print(f"{name:26} file {value:7.4f}   model {model[name]:7.4f}")
    for name, mean, tokens in zip(POOL, score.mean(axis=0), output_tokens.mean(axis=0), strict=True):
        print(f"{name:26} mean_score {mean:.4f}   mean_output_tokens {tokens:.1f}")


if __name__ == "__main__":
    main()
