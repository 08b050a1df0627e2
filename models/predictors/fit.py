"""Fit predictors: a network or ridge regression, out-of-fold predictions, and the corrections fitted to these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import block_diag

from models.predictors.network import FitSettings, PredictorNetwork, fit_networks
from models.predictors.ridge import fit_ridge
from models.predictors.weights import Raw, Weights

Kind = Literal["network", "ridge"]
RIDGE_BELOW = 1000
"""Fewer prompts than these are fitted by ridge regression."""

DIRECTIONS = 16
"""Principal components of an encoder's embedding that are learned from. With more of them single prompts are learned by heart."""

_PROMPT_EPOCHS = 1344.0  # epochs times the square root of the number of prompts
_EPOCHS = (8, 60)
_LEAST_SCALE = 1e-3
_LEAST_SHARE = 1e-6  # of the largest component: what is smaller is noise


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """P prompts with the outcomes of A models."""

    statistics: NDArray[np.float64]  # (P, S), with an encoder (P, S + E)
    score: NDArray[np.float64]  # (P, A) in [0, 1], NaN where not run
    log_length: NDArray[np.float64]  # (P, A) log of the output tokens, NaN where not run

    def at(self, rows: NDArray[Any]) -> Self:
        """Some of the prompts: their numbers, or a mask."""
        return type(self)(statistics=self.statistics[rows], score=self.score[rows], log_length=self.log_length[rows])

    def __len__(self) -> int:
        return len(self.statistics)


def kind_for(prompts: int) -> Kind:
    """What so many prompts are fitted with."""
    return "ridge" if prompts < RIDGE_BELOW else "network"


def fit_weights(outcomes: Outcomes, kind: Kind, seed: int, encoded: int = 0) -> Weights:
    """Fit to prompts.

    Args:
        outcomes: at least one prompt, with an outcome of each model.
        kind: network or ridge regression.
        seed: fixes every draw; ridge regression draws nothing.
        encoded: E, how many of the statistics are an encoder's embedding: the last ones.
    """
    mean, scale = _standard(outcomes.statistics)
    length_mean, length_scale = _standard(outcomes.log_length)
    blank = _linear(mean, scale, length_mean, length_scale)
    x = blank.standardise(outcomes.statistics).astype(np.float64)
    seen = _directions(x, scale, encoded)
    x = x if seen is None else x @ seen
    length = (outcomes.log_length - length_mean) / length_scale
    if kind == "ridge":
        skip, bias = fit_ridge(x, outcomes.score, length)
        return _linear(mean, scale, length_mean, length_scale, skip if seen is None else seen @ skip, bias)
    epochs = int(np.clip(round(_PROMPT_EPOCHS / np.sqrt(len(outcomes))), *_EPOCHS))
    networks = fit_networks(x, outcomes.score, length, FitSettings(epochs=epochs), seed)
    return _from_all(joint_weights(networks, blank), seen)


def predict_raw(weights: Weights, statistics: NDArray[np.float64]) -> Raw:
    """Predictions of the weights alone for statistics (P, S)."""
    return weights.outputs(weights.standardise(statistics))


def folds_of(prompts: int, folds: int, seed: int) -> NDArray[np.int64]:
    """(P,) the fold of each prompt, of equal size but for one."""
    return np.random.default_rng([seed, folds]).permutation(np.arange(prompts) % folds)


def joined(parts: list[Raw], fold_of: NDArray[np.int64]) -> Raw:
    """Put the predictions for each fold, in the order of its prompts, back in the order of all prompts."""
    shape = (len(fold_of), parts[0].logit.shape[1])
    whole = Raw(logit=np.empty(shape), log_length=np.empty(shape), log_sd=np.empty(shape))
    for fold, part in enumerate(parts):
        rows = fold_of == fold
        whole.logit[rows], whole.log_length[rows], whole.log_sd[rows] = part.logit, part.log_length, part.log_sd
    return whole


def _directions(x: NDArray[np.float64], scale: NDArray[np.float64], encoded: int) -> NDArray[np.float64] | None:
    """(S + E, S + K) what is fitted to: the statistics, and principal components of the embedding as it was, with variance 1."""
    if not encoded:
        return None
    own = x.shape[1] - encoded
    embedding = (x[:, own:] - x[:, own:].mean(axis=0)) * scale[own:]
    variance, directions = np.linalg.eigh(embedding.T @ embedding / len(x))
    variance, directions = variance[::-1][:DIRECTIONS], directions[:, ::-1][:, :DIRECTIONS]
    directions = directions * np.sign(directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])])
    directions = scale[own:, None] * directions / np.sqrt(np.maximum(variance, max(_LEAST_SHARE * variance[0], 1e-12)))
    return np.asarray(block_diag(np.eye(own), directions), np.float64)


def _from_all(weights: Weights, seen: NDArray[np.float64] | None) -> Weights:
    """The same network, as one of all statistics."""
    if seen is None:
        return weights
    return replace(weights, first=(seen @ weights.first).astype(np.float32), skip=(seen @ weights.skip).astype(np.float32))


def _standard(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and scale of each column over what is there."""
    there = np.isfinite(values)
    count = np.maximum(there.sum(axis=0), 1)
    mean = np.where(there, values, 0).sum(axis=0) / count
    variance = np.where(there, np.square(values - mean), 0).sum(axis=0) / count
    return mean, np.maximum(np.sqrt(variance), _LEAST_SCALE)


def _linear(
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
    length_mean: NDArray[np.float64],
    length_scale: NDArray[np.float64],
    skip: NDArray[np.float64] | None = None,
    bias: NDArray[np.float64] | None = None,
) -> Weights:
    """Weights without hidden units; all outputs are 0 without ``skip`` and ``bias``."""
    s, out = len(mean), 3 * len(length_mean)
    single = np.float32
    return Weights(
        mean=mean.astype(single), scale=scale.astype(single),
        length_mean=length_mean.astype(single), length_scale=length_scale.astype(single),
        first=np.zeros((s, 0), single), first_bias=np.zeros(0, single),
        second=np.zeros((0, 0), single), second_bias=np.zeros(0, single), heads=np.zeros((0, out), single),
        skip=np.zeros((s, out), single) if skip is None else skip.astype(single),
        bias=np.zeros(out, single) if bias is None else bias.astype(single),
    )  # fmt: skip


def joint_weights(networks: list[PredictorNetwork], blank: Weights) -> Weights:
    """The mean of some networks, as one network: one pass is faster than several. ``blank`` has what is standardised."""

    def each(name: str) -> list[NDArray[np.float32]]:
        return [network.state_dict()[name].numpy().T for network in networks]

    def mean(name: str) -> NDArray[np.float32]:
        return np.mean(each(name), axis=0)

    return Weights(
        mean=blank.mean, scale=blank.scale, length_mean=blank.length_mean, length_scale=blank.length_scale,
        first=np.concatenate(each("first.weight"), axis=1), first_bias=np.concatenate(each("first.bias")),
        second=np.asarray(block_diag(*each("second.weight")), np.float32), second_bias=np.concatenate(each("second.bias")),
        heads=np.concatenate(each("heads.weight")) / np.float32(len(networks)), skip=mean("skip.weight"), bias=mean("heads.bias"),
    )  # fmt: skip
