"""What a router may believe of true lengths and scores: their law given its predictions, learned from requests of the same world.

A sample of requests is drawn from the scenario's own catalogue and predictions, with seeds of its own. For each expert::

    log(true / predicted) = eps
    E[score]              = level(predictions, eps)

``eps`` is drawn from the ``NEIGHBOURS`` sampled requests whose predicted length and its stated standard deviation are nearest.
So no shape of the errors is assumed. ``level`` is a least-squares fit to the sample. Roll-outs count expected scores. QoS is
linear in the score, so the rest of a score would only be noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from rllib_envs.scenario import Scenario, with_workload
from rllib_envs.sim.terms import SCORE_GRID
from rllib_envs.sim.whatif import OVERRUN
from rllib_envs.workload.episode import Episode, draw_episode

SAMPLE, NEIGHBOURS = 8192, 256
"""Requests of the sample, and those among which the error of one request is drawn: mean log lengths err by some .03."""

_TIES = 1e-3  # requests with equal predictions are told apart at random, by less than any difference that counts

_STREAM = 62  # keeps the sample apart from all other draws with its seed
_MOST_TOKENS = 2**20

Floats = NDArray[np.floating[Any]]
Predicted = tuple[Floats, Floats, Floats]
"""Predicted scores, tokens, and standard deviations of log lengths, of one shape."""


class Beliefs:
    """The law of true lengths and scores given predictions, for each of N experts.

    Attributes:
        sample: the requests that it was learned from; S of them.
        expected_score: (S, N) their scores as far as predictions and lengths tell them.
    """

    def __init__(self, scenario: Scenario, capacity_rps: float, seed: int) -> None:
        """Draw the sample and fit the law.

        Args:
            scenario: the world.
            capacity_rps: of its fleet.
            seed: of the sample.
        """
        world = with_workload(scenario, requests=SAMPLE)
        self.sample: Episode = draw_episode(world, capacity_rps, np.random.SeedSequence(seed, spawn_key=(_STREAM,)))
        s = self.sample
        at_random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM, 0))).random(SAMPLE)
        self._level, self._eps = list[Floats](), list[Floats]()  # by expert
        self._scale, self._tree = list[Floats](), list[Any]()
        expected = list[Floats]()
        for e in range(scenario.n_experts):
            told = s.predicted_score[:, e], s.predicted_tokens[:, e], s.predicted_log_sd[:, e]
            eps = np.log(s.output[:, e] / told[1].astype(np.float64))
            self._eps.append(eps)
            self._level.append(_fit(_of_score(told, eps), s.score[:, e]))
            expected.append(self._score(told, e, eps))
            spread = np.stack([np.log(told[1].astype(np.float64)), told[2]]).std(axis=1)
            self._scale.append(np.append(np.where(spread > _TIES, 1 / np.maximum(spread, _TIES), 0.0), _TIES))
            self._tree.append(KDTree(_of_length(told, at_random) * self._scale[e]))
        self.expected_score: NDArray[np.float32] = np.stack(expected, axis=1).astype(np.float32)

    def draw(
        self, told: Predicted, expert: NDArray[np.int64], generated: NDArray[np.int64], uniform: NDArray[np.float64]
    ) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Lengths, above what is generated, and expected scores (F, K) of K answers.

        Args:
            told: each (K,), at the expert that answers.
            expert: (K,) its number.
            generated: (K,) tokens so far.
            uniform: (F, K) where in the law of what is still possible each length lies, from 0 to 1.
        """
        output, score = np.empty(uniform.shape, np.int32), np.empty(uniform.shape, np.float32)
        for k, (e, g) in enumerate(zip(expert.tolist(), generated.tolist(), strict=True)):
            own: Predicted = told[0][k : k + 1], told[1][k : k + 1], told[2][k : k + 1]
            place = _of_length(own, uniform[:1, k]) * self._scale[e]
            ascending = np.sort(self._eps[e][self._tree[e].query(place[0], NEIGHBOURS)[1]])
            log_predicted = float(np.log(own[1][0]))
            first = int(np.searchsorted(ascending, np.log(g + 0.5) - log_predicted)) if g > 0 else 0
            if first < NEIGHBOURS:
                eps = ascending[first + (uniform[:, k] * (NEIGHBOURS - first)).astype(np.int64)]
                tokens = np.exp(np.minimum(log_predicted + eps, np.log(_MOST_TOKENS)))
            else:  # longer than every error of the sample allows
                eps = np.full(len(uniform), ascending[-1])
                tokens = g * (1 - OVERRUN * np.log1p(-uniform[:, k]))
            output[:, k] = np.clip(np.rint(tokens), g + 1, _MOST_TOKENS)
            every: Predicted = np.repeat(own[0], len(eps)), np.repeat(own[1], len(eps)), np.repeat(own[2], len(eps))
            score[:, k] = self._score(every, e, eps)
        return output, score

    def _score(self, told: Predicted, e: int, eps: Floats) -> Floats:
        """Expected scores (n,), on a grid."""
        return np.rint(np.clip(_of_score(told, eps) @ self._level[e], 0, 1) * SCORE_GRID) / SCORE_GRID


def _of_length(told: Predicted, at_random: Floats) -> Floats:
    """What tells requests apart whose lengths err differently: (n, 3)."""
    return np.stack([np.log(told[1].astype(np.float64)), told[2].astype(np.float64), at_random], axis=1)


def _of_score(told: Predicted, eps: Floats) -> Floats:
    """What the expected score depends on: (n, 6); errors of lengths count less the larger they are."""
    score, tokens, bounded = told[0].astype(np.float64), told[1].astype(np.float64), np.tanh(eps)
    return np.stack([np.ones_like(score), score, score**2, bounded, score * bounded, np.log(tokens)], axis=1)


def _fit(features: Floats, target: Floats) -> Floats:
    """Least squares; of features that do not vary the smallest coefficients."""
    return np.linalg.lstsq(features, target.astype(np.float64), rcond=1e-6)[0]
