"""The error law of predictors that learned from prompts, drawn around the truth of the synthetic catalogue.

Scores. A predictor knows a part of what decides about an answer: ``y`` of the request's ease ``z``, ``y_m`` of the model's own
ease. It predicts the probability of a correct answer given these, so its scores are calibrated::

    score_ie = Phi( (theta_e + sqrt(k_z)*y_i + sqrt(k_e)*y_im) / sqrt(1 - k_z - k_e) )      corr(y, z) = sqrt(k_z/v_z)
                                                                                            corr(y_m, own_m) = sqrt(k_e/v_e)
Lengths. ``eps = log(true / median)`` is normal with the standard deviation ``s_im`` that is predicted, except in the right
tail, where answers loop to the limit. ``n_im`` is a standard normal that depends on what the length depends on::

    s_im   = LEAST_SD + EXCESS_SD*exp(EXCESS_SPREAD*q_im)             tail_im = min((s_im/TAIL_SD)^2, MOST_IN_TAIL)
    n_im   = WITH_REST*w_im - WITH_EASE*z_i + WITH_OTHERS*common_i + ...*alone_im
    eps_im = s_im*n_im,  or TAIL_FROM + TAIL_LENGTH*u^3 where n_im is among its highest tail_im, u its place there from 0 to 1

The predicted length is the mean and not the median: ``d_ie*exp(-eps_im)*mean(s_im)``, where ``mean`` makes the mean of the
predictions with sd ``s`` that of the true lengths. Experts with one model share its prediction, up to their means.

Sources: two pools, ZeroEval (2,840 prompts, the six models of edge6) and MMLU-Pro (12,032 prompts, seven chat models of at most
8 billion parameters). ``benchmarks/fit_error_law.py`` repeats these figures, of ridge regression on hashed words and statistics
of the text, out of fold. The law takes its lengths from both pools. Its scores are those of ZeroEval, to which the catalogue was
fitted:

==========================================  ======================  ======================  ======================
                                                          ZeroEval                MMLU-Pro                this law
==========================================  ======================  ======================  ======================
R2 of log length                                              .471                    .433                    .427
log-length error: sd                                          .534                    .569                    .544
its core (interquartile range / 1.349)                        .352                    .456                    .390
its quantiles at 5, 95, 99 %                    -.643, .820, 2.227      -.751, .858, 2.271      -.712, .777, 2.289
its sd by quarter of the predicted sd       .305, .355, .464, .841  .384, .461, .532, .805  .375, .439, .523, .758
mean predicted sd by quarter                .276, .327, .391, .656  .339, .407, .470, .647  .292, .350, .420, .620
its correlation between models                                .262                    .319                    .273
its correlation with success                                 -.171                   -.137                   -.181
its correlation with the log length                           .708                    .756                    .694
correlation of these sds between models                       .555                    .477                    .445
predicted scores: AUC                                         .807                    .683                    .800
their sd over prompts                                         .260                    .141                    .253
their sd within a prompt                                      .080                    .065                    .053
correlation of score errors between models                    .350                    .297                    .380
==========================================  ======================  ======================  ======================

What the law leaves out. The catalogue has no loops, so at a loop the prediction is low rather than the answer long: the error has
its measured tail, but predictions do not have the truth's. The predicted sd is independent of the predicted length and score (in
the pools long and difficult answers are the less certain ones). Errors of lengths given with the arrivals have the same law,
whatever the spread of those lengths.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from rllib_envs.workload.catalogue import OWN_VARIANCE, SHARED_VARIANCE, Latent, RequestBatch
from rllib_envs.workload.predicted import Predicted

KNOWN_EASE = 0.40
"""k_z, of v_z: fitted to the spread of predicted scores over the prompts of ZeroEval."""

KNOWN_OWN = 0.011
"""k_e, of v_e: predicted scores differ by .05 (sd) between experts within a prompt, and these differences come true on average.
Those of the pools hold noise as well."""

LEAST_SD, EXCESS_SD, EXCESS_SPREAD = 0.22, 0.16, 0.67
"""Predicted standard deviations of log length: a shifted log-normal law, fitted to their quantiles over both pools."""

SD_COMMON = 0.5
"""Correlation of q, so of predicted standard deviations, between the models."""

TAIL_SD, MOST_IN_TAIL = 1.98, 0.3
"""Share of errors in the right tail, by the predicted sd: fitted to the shares in its four quarters."""

TAIL_FROM, TAIL_LENGTH = 0.8, 2.9
"""The tail in log(true / median): fitted to its quantiles beyond .8."""

WITH_REST, WITH_EASE, WITH_OTHERS = 0.82, 0.30, 0.48
"""Correlations of the length error: with the part of the length that is the model's alone (fitted to the correlation of error and
length), with failure, and with the errors of the other models beyond that."""

_GRID = np.linspace(-7.0, 7.0, 2801)
_SD_KNOTS = LEAST_SD + np.geomspace(1e-3, 30.0, 65)


def draw_predictions(requests: RequestBatch, latent: Latent, rng: np.random.Generator) -> Predicted:
    """Predictions for M requests of the synthetic catalogue, with the measured errors.

    Args:
        requests: with the truth, and the experts' means.
        latent: what the truth was drawn from.
        rng: the same one gives the same errors at the same quantiles, whatever the truth.
    """
    n, model_of = len(requests.score), list(latent.model_of)
    models = max(model_of) + 1

    def common() -> NDArray[np.float32]:
        return rng.standard_normal((n, 1), dtype=np.float32)

    def per_model() -> NDArray[np.float32]:
        return rng.standard_normal((n, models), dtype=np.float32)[:, model_of]

    score = _scores(requests.means.score, latent, common(), per_model())
    log_sd = _predicted_sd(common(), per_model())
    error = _length_errors(log_sd, latent, common(), per_model())
    shift = WITH_REST * latent.rest_log_sd + WITH_EASE * latent.ease_log_sd
    tokens = requests.output_tokens * np.exp(-error) * np.interp(log_sd, _SD_KNOTS, _mean_factors(shift))
    return Predicted(
        score=score,
        output_tokens=np.maximum(tokens, 1.0),
        log_sd=log_sd,
        log_median=np.full(log_sd.shape[1], _median_log_ratio(shift)),
    )


def _scores(
    mean: NDArray[np.float64], latent: Latent, ease: NDArray[np.float32], own: NDArray[np.float32]
) -> NDArray[np.float64]:
    known = np.sqrt(KNOWN_EASE) * _knowing(latent.ease, KNOWN_EASE / SHARED_VARIANCE, ease)
    known = known + np.sqrt(KNOWN_OWN) * _knowing(latent.own_ease, KNOWN_OWN / OWN_VARIANCE, own)
    return ndtr((ndtri(mean) + known) / np.sqrt(1 - KNOWN_EASE - KNOWN_OWN))


def _knowing(truth: NDArray[np.float32], share: float, noise: NDArray[np.float32]) -> NDArray[np.float64]:
    """A standard normal that knows ``share`` of the variance of ``truth``, also a standard normal."""
    return np.sqrt(share) * truth.astype(np.float64) + np.sqrt(1 - share) * noise


def _predicted_sd(common: NDArray[np.float32], alone: NDArray[np.float32]) -> NDArray[np.float64]:
    q = np.sqrt(SD_COMMON) * common.astype(np.float64) + np.sqrt(1 - SD_COMMON) * alone
    return LEAST_SD + EXCESS_SD * np.exp(EXCESS_SPREAD * q)


def _length_errors(
    log_sd: NDArray[np.float64], latent: Latent, common: NDArray[np.float32], alone: NDArray[np.float32]
) -> NDArray[np.float64]:
    """log(true / median), (M, N)."""
    left = np.sqrt(1 - WITH_REST**2 - WITH_EASE**2 - WITH_OTHERS**2)
    normal = WITH_REST * latent.rest.astype(np.float64) - WITH_EASE * latent.ease + WITH_OTHERS * common + left * alone
    return _error(log_sd, normal)


def _error(log_sd: NDArray[Any], normal: NDArray[Any]) -> NDArray[np.float64]:
    """The error at the quantile ``Phi(normal)`` of the law with the predicted standard deviation ``log_sd``."""
    tail = np.minimum((log_sd / TAIL_SD) ** 2, MOST_IN_TAIL)
    place = 1 - ndtr(-normal) / tail  # negative for all that are not in the tail
    return np.where(place >= 0, TAIL_FROM + TAIL_LENGTH * place**3, log_sd * normal)


@lru_cache(maxsize=64)
def _mean_factors(shift: float) -> NDArray[np.float64]:
    """The factors ``mean(s)`` at ``_SD_KNOTS``: ``1/E[exp(-eps)]`` over tokens rather than over requests.

    Weighted by its length, an answer's ``n`` has a mean of ``shift`` in place of 0: the covariance of ``n`` and the log length.
    """
    weights = np.exp(-(_GRID**2) / 2)
    means = np.exp(-_error(_SD_KNOTS[:, None], _GRID + shift)) @ (weights / weights.sum())
    factors = 1 / means
    factors.setflags(write=False)
    return factors


@lru_cache(maxsize=64)
def _median_log_ratio(shift: float) -> float:
    """Median of log(true / predicted), of requests with every predicted standard deviation."""
    weights = np.exp(-(_GRID**2) / 2)
    log_sd = LEAST_SD + EXCESS_SD * np.exp(EXCESS_SPREAD * _GRID)
    return -float(np.log(np.interp(log_sd, _SD_KNOTS, _mean_factors(shift))) @ (weights / weights.sum()))
