"""A small multilayer perceptron for regression, in NumPy, for routers that learn within an episode.

Hidden layers with ReLU, squared error, Adam with weight decay. Inputs are standardised by the samples of the last fit.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_RATE, _DECAYS, _EPSILON = 1e-3, (0.9, 0.999), 1e-8  # Adam
_SHRINKAGE = 1e-4  # of the weights, each step
_FARTHEST = 4.0  # cut of standardised inputs


class Perceptron:
    """A function of F inputs, 0 until its first fit."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], rng: np.random.Generator) -> None:
        """Draw weights by He's rule; those of the output are 0."""
        sizes = [inputs, *hidden, 1]
        self._weights = [
            (np.sqrt(2 / fan_in) * rng.standard_normal((fan_in, fan_out))).astype(np.float32)
            for fan_in, fan_out in pairwise(sizes)
        ]
        self._weights[-1][:] = 0
        self._biases = [np.zeros(size, np.float32) for size in sizes[1:]]
        self._moments = [(np.zeros_like(p), np.zeros_like(p)) for p in self._parameters]
        self._steps = 0
        self._mean, self._sd = np.zeros(inputs, np.float32), np.ones(inputs, np.float32)

    def predict(self, inputs: Floats) -> Floats:
        """(n,) outputs for (n, F) inputs."""
        return self._forward(self._standardised(inputs))[-1][:, 0]

    def fit(self, inputs: Floats, targets: Floats, steps: int, batch: int, rng: np.random.Generator) -> None:
        """Take ``steps`` gradient steps from the present weights, each on ``batch`` of the samples (n, F) and (n,)."""
        self._mean, self._sd = inputs.mean(axis=0), np.maximum(inputs.std(axis=0), 1e-3)
        standardised = self._standardised(inputs)
        for _ in range(steps):
            drawn = rng.integers(len(targets), size=batch)
            self._step(standardised[drawn], targets[drawn])

    @property
    def _parameters(self) -> list[Floats]:
        return [*self._weights, *self._biases]

    def _standardised(self, inputs: Floats) -> Floats:
        return np.clip((inputs - self._mean) / self._sd, -_FARTHEST, _FARTHEST)

    def _forward(self, layer: Floats) -> list[Floats]:
        """The input and the output of each layer, (n, size)."""
        layers = [layer]
        last = len(self._weights) - 1
        for i, (weight, bias) in enumerate(zip(self._weights, self._biases, strict=True)):
            layer = layer @ weight + bias
            if i < last:
                layer = np.maximum(layer, 0)
            layers.append(layer)
        return layers

    def _step(self, inputs: Floats, targets: Floats) -> None:
        """One step of Adam down the mean squared error."""
        layers = self._forward(inputs)
        slope: Floats = ((layers[-1] - targets[:, None]) * (2 / len(targets))).astype(np.float32)
        weight_slopes: list[Floats] = []
        bias_slopes: list[Floats] = []
        for i in reversed(range(len(self._weights))):
            weight_slopes.insert(0, layers[i].T @ slope)
            bias_slopes.insert(0, slope.sum(axis=0))
            slope = (slope @ self._weights[i].T) * (layers[i] > 0)
        self._steps += 1
        first, second = (1 - decay**self._steps for decay in _DECAYS)
        gradients = [*weight_slopes, *bias_slopes]
        for parameter, gradient, (mean, square) in zip(self._parameters, gradients, self._moments, strict=True):
            mean += (1 - _DECAYS[0]) * (gradient - mean)
            square += (1 - _DECAYS[1]) * (gradient**2 - square)
            parameter *= np.float32(1 - _SHRINKAGE)
            parameter -= np.float32(_RATE / first) * mean / (np.sqrt(square / np.float32(second)) + np.float32(_EPSILON))
