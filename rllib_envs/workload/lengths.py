"""Answer lengths that come with the arrivals, and every expert's answer length given them.

A given length ``T_i`` is that of the recorded answer to a request. Expert ``e`` of model ``m`` answers with::

    d_ie = 1 + (r_e*T_i - 1) * exp(sigma*w_im - sigma^2/2)          r_e = mean_e / mean of mean_e over the experts

tokens, rounded up or down at random so that rounding keeps every mean: given ``T_i`` the mean of ``d_ie`` is exactly
``r_e*T_i``. It is 1 where that is less: an answer has a first token, and only those after it vary. ``w_im`` is the catalogue's
standard normal of request and model. ``sigma`` is ``LENGTH_NOISE_LOG_SD``, the spread between models in the catalogue's source.

Scores depend on lengths through the ease ``z_i`` alone (``rllib_envs.workload.catalogue``), whose correlation with the log length
of any expert is ``-lambda`` there. Let ``t_i`` be the normal score of ``T_i``: ``Phi^-1`` of its rank among the lengths of the
arrivals, at random within ties. So ``t`` is standard normal for any law. Let ``tau`` be the standard deviation of ``log T``. Then
the log length of an expert has correlation ``rho = tau/sqrt(tau^2 + sigma^2)`` with ``t``. Conditioning ``z`` on it::

    z_i = -a*t_i + sqrt(1 - a^2)*e_i          a = min(lambda/rho, 1),  e ~ N(0, 1)

leaves ``z`` standard normal, which keeps every mean score. It gives ``z`` the catalogue's correlation ``-a*rho = -lambda`` with
the log length of every expert. It is the conditional law of a Gaussian ``z`` if ``log T`` is Gaussian; else it holds for ranks.
Lengths that hardly differ (``rho < lambda``) cannot carry that correlation. The wordiness ``g`` needs no draw of its own: only
the length depends on it, and the length is given.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rllib_envs.workload.predicted import Predicted

MAX_TOKENS = 2**30
"""Longest prompt or answer; beyond any engine, and small enough that sums stay whole numbers."""

LENGTH_NOISE_LOG_SD = 0.277
"""sigma: log standard deviation of one model's answer length about the length that the prompt asks of all models. From the middle
half of the log ratios of two models' lengths (interquartile range / 1.349 / sqrt 2, mean over pairs,
``benchmarks/fit_catalogue.py``). The catalogue's own remainder, ``s*sqrt(1 - lambda^2 - gamma^2)`` = .56, is twice that. It also
stands for the 1-2 % of answers that loop without end and hide the agreement of all others in tokens. A trace has such answers
among its own lengths."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GivenLengths:
    """Output lengths of n requests, and their law."""

    tokens: NDArray[np.int32]  # (n,) >= 1
    law: NDArray[np.int32]  # (K,) ascending: the lengths among which each has its rank; K >= 1

    def at(self, rows: NDArray[np.integer[Any]]) -> Self:
        """The lengths of some of the requests."""
        return type(self)(tokens=self.tokens[rows], law=self.law)

    def levels(self, within_ties: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """(n,) ranks from 0 to 1: uniform over requests of the law for uniform ``within_ties``, (n,) from 0 to 1."""
        first = np.searchsorted(self.law, self.tokens, "left")
        width = np.maximum(np.searchsorted(self.law, self.tokens, "right") - first, 1)
        return (np.minimum(first, self.law.size - width) + within_ties * width) / self.law.size

    def ease(self, noise: NDArray[np.float32], within_ties: NDArray[np.float64], coupling: float) -> NDArray[np.float32]:
        """The ease ``z`` (n, 1) from standard normal ``noise`` (n, 1); ``coupling`` is lambda. See the module."""
        from scipy.special import ndtri  # here: reading a scenario does not need SciPy

        tau = float(np.log(self.law).std())
        rho = tau / np.hypot(tau, LENGTH_NOISE_LOG_SD)
        a = min(coupling / rho, 1.0) if rho > 0 else 1.0
        score = ndtri(np.clip(self.levels(within_ties), 1e-9, 1 - 1e-9))[:, None]
        return (np.sqrt(1 - a * a) * noise - a * score).astype(np.float32)

    @property
    def log_sd(self) -> float:
        """Standard deviation of an expert's log length, all requests together."""
        return float(np.hypot(np.log(self.law).std(), LENGTH_NOISE_LOG_SD))

    def means(self, usual: Predicted) -> Predicted:
        """What is expected of an answer whose request is not known; ``usual`` (1, N): the catalogue's own means."""
        tokens = self.law.mean() * usual.output_tokens / usual.output_tokens.mean()
        spread = np.full_like(tokens, self.log_sd)
        return replace(usual, output_tokens=np.maximum(tokens, 1.0), log_sd=spread, log_median=None)

    def at_experts(
        self, mean_tokens: NDArray[np.float64], noise: NDArray[np.floating[Any]], rounding: NDArray[np.float64]
    ) -> NDArray[np.int32]:
        """Lengths of the answers of all experts, (n, N).

        Args:
            mean_tokens: (N,) mean answer lengths of the experts; only their ratios count.
            noise: (n, N) standard normal, equal for experts with the same model.
            rounding: (n, N) from 0 to 1, uniform, equal for experts with the same model.
        """
        mean = np.maximum(self.tokens[:, None] * (mean_tokens / mean_tokens.mean()), 1.0)
        factor = np.exp(LENGTH_NOISE_LOG_SD * noise.astype(np.float64) - LENGTH_NOISE_LOG_SD**2 / 2)
        return np.minimum(np.floor(1 + (mean - 1) * factor + rounding), MAX_TOKENS).astype(np.int32)


def given_lengths(tokens: NDArray[np.integer[Any]]) -> GivenLengths:
    """Lengths as their own law, read-only; an answer of 0 tokens counts as one of 1."""
    positive = np.clip(tokens, 1, MAX_TOKENS).astype(np.int32)
    law = np.sort(positive)
    for shared in (positive, law):
        shared.setflags(write=False)
    return GivenLengths(tokens=positive, law=law)
