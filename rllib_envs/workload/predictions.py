"""The router's predictions for a request, in place of the true values."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rllib_envs.errors import InputError
from rllib_envs.scenario import PredictionLaw, Predictions
from rllib_envs.workload import error_law
from rllib_envs.workload.catalogue import MAX_TOKENS, RequestBatch
from rllib_envs.workload.predicted import Predicted
from rllib_envs.workload.prompt_files import PREDICTED_KEYS

_ORACLE_SCORE_SD, _ORACLE_LENGTH_LOG_SD = 0.1, 0.3
"""Errors of ``oracle-noise`` that are not set. Every other law has errors of its own, to which set ones are added."""


def predict(predictions: Predictions, requests: RequestBatch, rng: np.random.Generator) -> Predicted:
    """Predict scores and lengths as ``predictions.law`` says, with the further errors that the other fields set.

    Of the law (``law_of``): ``measured`` draws them around the truth, and ``given`` has those of predictors or of the file's own
    keys. ``means`` takes each expert's means, ``task-means`` those on the prompt's task. ``oracle-noise`` starts from the
    probability and the true length. It uses the probability rather than the score, because noise around a 0 or a 1 would reveal
    the random outcome. For continuous scores the two are the same.

    Further errors. Scores: ``clip(score + score_bias + score_sd * N(0, 1), 0, 1)``. Lengths:
    ``length * length_factor * exp(length_log_sd * N(0, 1))`` (the median stays), divided by ``hidden_factor`` for a
    ``hidden_share`` of the requests, at every expert alike; then rounded to the nearest bucket in ratio. The predicted standard
    deviation of the log length knows of none of them but the noise of ``oracle-noise``, which has no other error.
    With every error off, ``oracle-noise`` is exactly the probability and the true length.

    The same ``rng`` gives the same underlying draws whatever the settings, so settings can be compared request by request.

    Raises:
        InputError: the law does not go with the catalogue.
    """
    shape = requests.score.shape
    score_noise = rng.standard_normal(shape, dtype=np.float32)
    length_noise = rng.standard_normal(shape, dtype=np.float32)
    hidden = rng.random((shape[0], 1)) < predictions.hidden_share
    law = law_of(predictions.law, synthetic=requests.latent is not None, given=requests.given is not None)
    score_sd, length_log_sd = _noise(predictions, law)
    base = _base(law, requests, length_log_sd, rng)
    score = base.score + predictions.score_bias + score_sd * score_noise.astype(np.float64)
    log_noise = np.clip(length_log_sd * length_noise.astype(np.float64), -20, 20)  # keeps extreme settings finite
    tokens = base.output_tokens * predictions.length_factor * np.exp(log_noise)
    tokens /= np.where(hidden, predictions.hidden_factor, 1.0)
    if predictions.length_buckets:
        tokens = _nearest_bucket(tokens, predictions.length_buckets)
    return replace(base, score=np.clip(score, 0.0, 1.0), output_tokens=np.clip(tokens, 1.0, MAX_TOKENS))


Law = Literal["measured", "oracle-noise", "given", "means", "task-means"]
"""``predictions.law`` without ``auto``."""


def law_of(law: PredictionLaw, *, synthetic: bool, given: bool) -> Law:
    """The law for a catalogue that is synthetic, or for a file with predictions (``given``) or none.

    ``auto``: ``measured`` for the synthetic catalogue; for a file ``given`` if there are predictions, else ``means``.

    Raises:
        InputError: the law does not go with the catalogue.
    """
    if law == "auto":
        return "measured" if synthetic else "given" if given else "means"
    if law == "task-means" and synthetic:
        raise InputError(
            "predictions.law = 'task-means': the synthetic catalogue has no tasks; it allows measured, means, oracle-noise "
            "and auto"
        )
    if law == "measured" and not synthetic:
        raise InputError(
            "predictions.law = 'measured': it draws errors for the synthetic catalogue only; a file allows given (its own keys), "
            "means, task-means, oracle-noise and auto"
        )
    if law == "given" and not given:
        raise InputError(
            f"predictions.law = 'given': nothing is predicted; the catalogue must be a file whose prompts have one or more of "
            f"{', '.join(PREDICTED_KEYS)}, or for which there are predictors (predictions.predictors)"
        )
    return law


def _noise(predictions: Predictions, law: Law) -> tuple[float, float]:
    """Standard deviations of the noise on scores and on log lengths."""
    usual = (_ORACLE_SCORE_SD, _ORACLE_LENGTH_LOG_SD) if law == "oracle-noise" else (0.0, 0.0)
    score_sd = usual[0] if predictions.score_sd is None else predictions.score_sd
    return score_sd, usual[1] if predictions.length_log_sd is None else predictions.length_log_sd


def _base(law: Law, requests: RequestBatch, length_log_sd: float, rng: np.random.Generator) -> Predicted:
    shape = requests.score.shape
    if law == "measured" and requests.latent is not None:
        return error_law.draw_predictions(requests, requests.latent, rng)
    if law == "given" and requests.given is not None:
        return requests.given
    if law == "task-means" and requests.task_means is not None:
        return requests.task_means
    if law == "means":
        means = requests.means
        score, tokens, log_sd = (np.broadcast_to(x, shape) for x in (means.score, means.output_tokens, means.log_sd))
        return replace(means, score=score, output_tokens=tokens, log_sd=log_sd)
    tokens = requests.output_tokens.astype(np.float64)
    unbiased = np.zeros(shape[1])  # the noise leaves the median where it is
    return Predicted(score=requests.probability, output_tokens=tokens, log_sd=np.full(shape, length_log_sd), log_median=unbiased)


def _nearest_bucket(tokens: NDArray[np.float64], buckets: tuple[int, ...]) -> NDArray[np.float64]:
    edges = np.sort(np.array(buckets, dtype=np.float64))
    halfway = np.sqrt(edges[:-1] * edges[1:])  # in ratio, the middle of two buckets is their geometric mean
    return edges[np.searchsorted(halfway, tokens, side="right")]
