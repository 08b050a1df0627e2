"""The rollout worker of DQN: epsilon-greedy, with a heuristic to explore by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.bounds import MASKED_SCORE
from models.rllib.dqn.exploration import Actions, choose
from models.rllib.rollout.runner import VectorEnvRunner
from rllib_envs.baselines import HEURISTICS


class GuidedEnvRunner(VectorEnvRunner):
    """A ``VectorEnvRunner`` that acts epsilon-greedily; what explores follows ``config.guide``, or is random.

    The module's buffers hold the shares (``DQNModule``), so that they come with its weights. Random actions are drawn from the
    possible ones. A heuristic takes only possible ones.

    Metrics beside those of ``VectorEnvRunner``: ``explored`` and ``guided``, decisions of the sample that explored, and those of
    them that followed the heuristic.
    """

    def make_env(self) -> None:
        """Build or rebuild the environments, and a heuristic for each group of them: one that learns keeps what it has seen."""
        super().make_env()
        guide = HEURISTICS[self.config.guide]  # pyright: ignore[reportAttributeAccessIssue]
        parameters: Mapping[str, float] = self.config.guide_parameters  # pyright: ignore[reportAttributeAccessIssue]
        self._guides = [guide.policy(**parameters) for _ in self.env.groups]

    def _act(self, group: int, observation: Mapping[str, NDArray[np.float32]], explore: bool, random_actions: bool) -> Actions:
        if random_actions or not explore:
            return super()._act(group, observation, explore, random_actions)
        module: Any = self.module
        actions, explored, guided = choose(
            super()._act(group, observation, False, False),
            self._draw(np.where(observation["action_mask"] > 0, 0.0, MASKED_SCORE)),
            lambda: self._guides[group](self.env.groups[group].simulation, self._rng),
            epsilon=module.epsilon.item(),
            guidance=module.guidance.item(),
            rng=self._rng,
        )
        for name, chosen in (("explored", explored), ("guided", guided)):
            self.metrics.log_value(name, int((chosen & ~self._ended[group]).sum()), reduce="sum")
        return actions
