"""The common part of SAC and DQN: sample columns, store them in a replay buffer, learn from what is drawn there."""

from __future__ import annotations

from typing import Any

import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import REPLAY_BUFFER_ADD_DATA_TIMER, REPLAY_BUFFER_SAMPLE_TIMER, TIMERS

from models.rllib.learning.replay import Replay, Ring
from models.rllib.rollout.collect import VectorAlgorithm, collect, share_weights, update_learners
from models.rllib.rollout.env_groups import first_scenarios
from models.rllib.rollout.fragments import Fragment
from rllib_envs.errors import InputError

COMPONENT_REPLAY = "replay"
"""Name of the replay buffer in a checkpoint."""

_UPDATES_A_CALL = 8  # some 25 MB of observations: fewer calls gain nothing, more memory costs time


class ReplayAlgorithm(VectorAlgorithm):
    """Samples columns, stores them, and takes an optimizer step for every ``steps_per_update`` of them.

    Checkpoints hold the replay buffer where ``save_replay`` says so.
    """

    def setup(self, config: Any) -> None:
        """Set up an empty replay buffer beside what every algorithm has."""
        super().setup(config)
        self.replay = Replay(self.config.replay_capacity, len(first_scenarios(self.config.env_config)))
        self._rng = np.random.default_rng(None if self.config.seed is None else [self.config.seed, 1])
        self._owed_steps = 0

    def training_step(self) -> None:
        """Sample once, store, learn, and give the workers the new weights."""
        self._store(collect(self))
        if len(self.replay) < self.config.learning_starts:
            self._owed_steps = 0
            return
        updates, self._owed_steps = divmod(self._owed_steps, self.config.steps_per_update)
        while updates > 0:
            self._learn(min(updates, _UPDATES_A_CALL))
            updates -= _UPDATES_A_CALL
        share_weights(self)

    def _store(self, fragments: list[Fragment]) -> None:
        with self.metrics.log_time((TIMERS, REPLAY_BUFFER_ADD_DATA_TIMER)):
            for fragment in fragments:
                self.replay.add(fragment)
                self._owed_steps += fragment.env_steps()

    def _learn(self, updates: int) -> None:
        """Take so many optimizer steps, on minibatches of one scenario each."""
        size = self.config.minibatch_size
        for ring, share in zip(self.replay.rings, self.replay.shares(updates, self._rng), strict=True):
            if not share:
                continue
            rows = int(share) * size
            with self.metrics.log_time((TIMERS, REPLAY_BUFFER_SAMPLE_TIMER)):
                columns = self.draw(ring, rows)
            batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=rows)
            update_learners(self, TrainingData(batch=batch), minibatch_size=size, num_epochs=1)

    def draw(self, ring: Ring, rows: int) -> dict[str, Any]:
        """Steps from the replay buffer, as ``Ring.sample`` gives them."""
        return ring.sample(rows, self._rng)

    def get_state(self, components: Any = None, *, not_components: Any = None, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state and, where asked for, the replay buffer."""
        state = super().get_state(components, not_components=not_components, **kwargs)
        if self.config.save_replay and self._check_component(COMPONENT_REPLAY, components, not_components):
            state[COMPONENT_REPLAY] = self.replay.get_state()
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the result of ``get_state``."""
        super().set_state(state)
        if COMPONENT_REPLAY in state:
            self.replay.set_state(state[COMPONENT_REPLAY])

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """RLlib's components and, where asked for, the replay buffer."""
        own = [(COMPONENT_REPLAY, self.replay)] if self.config.save_replay else []
        return [*super().get_checkpointable_components(), *own]


def check_replay_settings(config: Any, name: str) -> None:
    """Check the settings that every algorithm with a replay buffer has.

    Args:
        config: the configuration.
        name: of the algorithm, for messages.

    Raises:
        InputError: a setting is not valid, or would have no effect.
    """
    check_positive(config, "lr", "steps_per_update", "replay_capacity", "minibatch_size")
    check_share(config, "gamma", "polyak")
    if config.learning_starts > config.replay_capacity:
        raise InputError(
            f"learning_starts = {config.learning_starts}: must not exceed replay_capacity = {config.replay_capacity}"
        )
    if not 0 <= config.beta < float("inf"):
        raise InputError(f"beta = {config.beta}: must be >= 0")
    if (config.num_learners or 0) > 1:
        raise InputError(
            f"num-learners = {config.num_learners}: {name} learns in one process (0 or 1): its minibatches, "
            f"{config.minibatch_size} steps, are too small to be worth dividing"
        )


def check_positive(config: Any, *names: str) -> None:
    """Check that settings are positive and finite.

    Raises:
        InputError: one is not.
    """
    for name in names:
        if not 0 < getattr(config, name) < float("inf"):
            raise InputError(f"{name} = {getattr(config, name)}: must be positive")


def check_share(config: Any, *names: str) -> None:
    """Check that settings are from 0 to 1.

    Raises:
        InputError: one is not.
    """
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise InputError(f"{name} = {getattr(config, name)}: must be from 0 to 1")
