"""Schedules of exploration, and the choice between the greedy action, the heuristic's and a random one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Actions = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exploration:
    """Linear schedules over the first ``steps`` environment steps; constant after them.

    Attributes:
        epsilon: share of decisions that explore, at first and at last.
        guidance: share of these that follow the heuristic, at first and at last; the others are random.
        steps: length of the schedules.
    """

    epsilon: tuple[float, float]
    guidance: tuple[float, float]
    steps: int

    def at(self, steps: int) -> tuple[float, float]:
        """(epsilon, guidance) after so many environment steps."""
        done = min(steps / self.steps, 1.0)
        return _between(self.epsilon, done), _between(self.guidance, done)


def choose(
    greedy: Actions, uniform: Actions, ask: Callable[[], Actions], *, epsilon: float, guidance: float, rng: np.random.Generator
) -> tuple[Actions, NDArray[np.bool_], NDArray[np.bool_]]:
    """Choose an action for each of B environments.

    Args:
        greedy: (B,) actions of the greatest value.
        uniform: (B,) random actions.
        ask: the heuristic, which gives (B,) actions; called only where it is followed.
        epsilon: probability of exploring.
        guidance: probability of following the heuristic, if exploring.
        rng: draws which.

    Returns:
        (B,) actions; (B,) where they explore; (B,) where they follow the heuristic.
    """
    drawn = rng.random((2, greedy.size))
    exploring = drawn[0] < epsilon
    guided = exploring & (drawn[1] < guidance)
    actions = np.where(exploring, uniform, greedy)
    if guided.any():
        actions = np.where(guided, ask(), actions)
    return actions, exploring, guided


def _between(ends: tuple[float, float], done: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * done
