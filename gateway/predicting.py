"""What is predicted for a request: by fitted predictors from its text, else each expert's means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gateway.live import Told
from gateway.request import RouteRequest
from models.predictors.served import Predictors
from rllib_envs.errors import InputError
from rllib_envs.expert import Expert
from rllib_envs.workload.catalogue import LENGTH_LOG_SD

_MOST_CHARACTERS = 20_000  # of a prompt that predictors read: its beginning says what it asks


class Predicting:
    """Predictions for N experts.

    Args:
        experts: their means are predicted where there is no predictor, or no text.
        predictors: fitted to prompts; each expert's model must be among theirs. None: there are none.

    Raises:
        InputError: the predictors do not know an expert's model.
    """

    def __init__(self, experts: Sequence[Expert], predictors: Predictors | None = None) -> None:
        self._means = Told(
            score=np.array([expert.mean_score for expert in experts]),
            tokens=np.array([expert.mean_output_tokens for expert in experts]),
            log_sd=np.full(len(experts), LENGTH_LOG_SD),
        )
        self._predictors = predictors
        self._columns: list[int] = []
        if predictors is not None:
            for expert in experts:
                if expert.model not in predictors.models:
                    known = ", ".join(predictors.models)
                    raise InputError(f"predictors: none for model {expert.model!r} of expert {expert.name!r}; there are {known}")
                self._columns.append(predictors.models.index(expert.model))

    @property
    def log_sd(self) -> NDArray[np.float64]:
        """(N,) usual standard deviation of the log of an answer's length about its prediction."""
        return self._means.log_sd if self._predictors is None else self._usual_log_sd(self._predictors)

    def of(self, request: RouteRequest) -> Told:
        """What is predicted for a request, with its limit of tokens."""
        told = self._means if self._predictors is None or not request.text else self._by(self._predictors, request.text)
        return _within(told, request)

    @property
    def reads_text(self) -> bool:
        """Whether there are predictors."""
        return self._predictors is not None

    def usual(self, request: RouteRequest) -> Told:
        """What is predicted where predictors do not answer: each expert's means."""
        return _within(self._means, request)

    def _by(self, predictors: Predictors, text: str) -> Told:
        found = predictors.predict([text[:_MOST_CHARACTERS]])
        return Told(
            score=found.score[0, self._columns],
            tokens=found.output_tokens[0, self._columns],
            log_sd=found.log_sd[0, self._columns],
        )

    def _usual_log_sd(self, predictors: Predictors) -> NDArray[np.float64]:
        average = predictors.predict_from(predictors.weights.mean[None].astype(np.float64))  # of a prompt like the average one
        return average.log_sd[0, self._columns]


def _within(told: Told, request: RouteRequest) -> Told:
    return told if request.max_tokens is None else told._replace(most=float(max(request.max_tokens, 1)))
