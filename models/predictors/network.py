"""The network of predictors, and how it is fitted: text statistics to quality and length, with a head for each model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 128
_FREEDOM = 4.0  # degrees of freedom of the length errors, whose tails are heavy
_LEAST_LOG_SD, _MOST_LOG_SD = math.log(0.05), math.log(3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """How the network is fitted."""

    epochs: int
    batch: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.02
    dropout: float = 0.25
    networks: int = 2  # their outputs are averaged


class PredictorNetwork(nn.Module):
    """Two layers beside a linear skip; three outputs for each of A models.

    Shapes:
        - x: (B, S) standardised statistics
        - output: (B, A, 3) logit of the quality, mean and log standard deviation of the log length
    """

    def __init__(self, statistics: int, models: int, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.models, self.dropout, self._generator = models, dropout, generator
        self.first = _bare_linear(statistics, WIDTH)
        self.second = _bare_linear(WIDTH, WIDTH)
        self.heads = _bare_linear(WIDTH, 3 * models)
        self.skip = _bare_linear(statistics, 3 * models, bias=False)
        for layer in (self.first, self.second, self.heads):
            bound = 1 / math.sqrt(layer.in_features)
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
        nn.init.zeros_(self.skip.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, A, 3), see above."""
        h = self._drop(F.relu(self.first(x)))
        h = self._drop(F.relu(self.second(h)))
        return (self.heads(h) + self.skip(x)).unflatten(-1, (self.models, 3))

    def _drop(self, h: Tensor) -> Tensor:
        if not self.training or not self.dropout:
            return h
        kept = torch.rand(h.shape, generator=self._generator) >= self.dropout
        return h * kept / (1 - self.dropout)


def fit_networks(
    x: NDArray[np.float64],
    score: NDArray[np.float64],
    log_length: NDArray[np.float64],
    settings: FitSettings,
    seed: int,
) -> list[PredictorNetwork]:
    """Fit networks by Adam: cross entropy of the quality, Student-t likelihood of the log length.

    Args:
        x: (P, S) standardised statistics.
        score: (P, A) in [0, 1], NaN where a model was not run.
        log_length: (P, A) standardised log lengths, NaN where there is none.
        settings: how.
        seed: fixes initial weights, order of the prompts and dropout.
    """
    return [
        _fit(x, score, log_length, settings, torch.Generator().manual_seed(seed * settings.networks + i))
        for i in range(settings.networks)
    ]


def _fit(
    x: NDArray[np.float64],
    score: NDArray[np.float64],
    log_length: NDArray[np.float64],
    settings: FitSettings,
    generator: torch.Generator,
) -> PredictorNetwork:
    inputs, quality, length = (torch.from_numpy(np.asarray(a, np.float32)) for a in (x, score, log_length))
    network = PredictorNetwork(x.shape[1], score.shape[1], settings.dropout, generator)
    optimizer = torch.optim.AdamW(network.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    steps = settings.epochs * math.ceil(len(x) / settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, total_steps=max(steps, 2))
    for _ in range(settings.epochs):
        for rows in torch.randperm(len(x), generator=generator).split(settings.batch):
            optimizer.zero_grad()
            loss(network(inputs[rows]), quality[rows], length[rows]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def loss(output: Tensor, score: Tensor, log_length: Tensor) -> Tensor:
    """Cross entropy and negative log likelihood of a Student t, over what is there.

    Shapes:
        - output: (B, A, 3); score, log_length: (B, A), NaN where missing; a scalar comes out
    """
    logit, mean, log_sd = output.unbind(dim=-1)
    log_sd = log_sd.clamp(_LEAST_LOG_SD, _MOST_LOG_SD)
    has_score, has_length = ~score.isnan(), ~log_length.isnan()
    quality = F.binary_cross_entropy_with_logits(logit[has_score], score[has_score]) if has_score.any() else logit.sum() * 0
    z = (log_length - mean)[has_length] * (-log_sd[has_length]).exp()
    length = (log_sd[has_length] + (_FREEDOM + 1) / 2 * (z.square() / _FREEDOM).log1p()).mean() if has_length.any() else 0.0
    return quality + length


def _bare_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A layer that is not initialised: that would draw from the global generator."""
    return cast(nn.Linear, nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias))
