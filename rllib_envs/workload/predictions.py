"""The router's predictions for a request, in place of the true values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rllib_envs.scenario import Predictions
from rllib_envs.workload.catalogue import MAX_TOKENS, RequestBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """Predictions for M requests at N experts."""

    score: NDArray[np.float64]  # (M, N) in [0, 1]
    output_tokens: NDArray[np.float64]  # (M, N) >= 1


def predict(predictions: Predictions, requests: RequestBatch, rng: np.random.Generator) -> Told:
    """Predict scores and lengths with the errors that ``predictions`` sets.

    Scores: ``clip(probability + score_bias + score_sd * N(0, 1), 0, 1)``. They use the probability rather than the score, because
    noise around a 0 or a 1 would reveal the random outcome; for continuous scores the two are the same.
    Lengths: ``true * length_factor * exp(length_log_sd * N(0, 1))`` (the median is unbiased), divided by ``hidden_factor`` for
    a ``hidden_share`` of the requests, at every expert alike; then rounded to the nearest bucket in ratio.
    With every error off, they are exactly the probability and the true length.

    The same ``rng`` gives the same underlying draws whatever the settings, so settings can be compared request by request.
    """
    shape = requests.score.shape
    score_noise = rng.standard_normal(shape, dtype=np.float32)
    length_noise = rng.standard_normal(shape, dtype=np.float32)
    hidden = rng.random((shape[0], 1)) < predictions.hidden_share
    score = requests.probability + predictions.score_bias + predictions.score_sd * score_noise.astype(np.float64)
    log_noise = np.clip(predictions.length_log_sd * length_noise.astype(np.float64), -20, 20)  # keeps extreme settings finite
    tokens = requests.output_tokens.astype(np.float64) * predictions.length_factor * np.exp(log_noise)
    tokens /= np.where(hidden, predictions.hidden_factor, 1.0)
    if predictions.length_buckets:
        tokens = _nearest_bucket(tokens, predictions.length_buckets)
    return Told(score=np.clip(score, 0.0, 1.0), output_tokens=np.clip(tokens, 1.0, MAX_TOKENS))


def _nearest_bucket(tokens: NDArray[np.float64], buckets: tuple[int, ...]) -> NDArray[np.float64]:
    edges = np.sort(np.array(buckets, dtype=np.float64))
    halfway = np.sqrt(edges[:-1] * edges[1:])  # in ratio, the middle of two buckets is their geometric mean
    return edges[np.searchsorted(halfway, tokens, side="right")]
