"""Discrete SAC on columns: its configuration and its training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import REPLAY_BUFFER_ADD_DATA_TIMER, REPLAY_BUFFER_SAMPLE_TIMER, TIMERS

from models.paper.networks import PaperSpec
from models.rllib.config import NOT_GIVEN, VectorAlgorithmConfig
from models.rllib.rollout.collect import VectorAlgorithm, collect, share_weights, update_learners, with_processes
from models.rllib.rollout.env_groups import Group, first_scenarios
from models.rllib.rollout.fragments import Fragment
from models.rllib.sac.learner import SACLearner
from models.rllib.sac.module import SACModule
from models.rllib.sac.replay import Replay
from models.rllib.sac.settings import SACSettings
from models.router import RouterSpec
from rllib_envs.errors import InputError

COMPONENT_REPLAY = "replay"
"""Name of the replay buffer in a checkpoint."""

PAPER: Mapping[str, Any] = {"lr": 3e-5, "alpha_lr": 3e-4, "gamma": 0.99, "beta": 0.0, "minibatch_size": 256, "polyak": 0.995}
"""What arXiv 2508.00234 trains with. Its discount is that of a step, however long."""

_PLAIN: Mapping[str, Any] = {"target_entropy_share": 0.3, "critic_warmup": 0, "centre_rewards": False}
"""What it does not have: our changes for a router that begins with a price."""

_UPDATES_A_CALL = 8  # some 25 MB of observations: fewer calls gain nothing, more memory costs time


class RouterSACConfig(VectorAlgorithmConfig):
    """Settings of SAC beside RLlib's ``lr`` (actor and critics), ``gamma`` and ``minibatch_size``.

    It learns from the scenarios' rewards.

    Attributes:
        alpha_lr: learning rate of the temperature.
        polyak: EMA weight of the target critics.
        beta: discount rate of time, 1/s.
        twins: ``mean`` or ``min``: how to combine the critics.
        q_clip: bound of the clipped critic loss, None for the plain one.
        target_entropy_share: target entropy over that of the uniform policy on the possible actions.
        critic_warmup: optimizer steps of the critics before actor and temperature learn.
        centre_rewards: subtract the mean reward of each environment. Values then begin near 0, where those of critics do, and are
            as small as what decisions change.
        steps_per_update: environment steps for each optimizer step.
        replay_capacity: environment steps to keep, some 6 kB each with six experts.
        learning_starts: environment steps in the replay buffer before the first optimizer step.
        save_replay: whether checkpoints hold the replay buffer. Without it, a restored run first fills a new one.
    """

    USED = frozenset({"lr", "gamma", "minibatch_size"})
    NEEDS_COUNTERFACTUAL = False

    def __init__(self, algo_class: Any = None) -> None:
        super().__init__(algo_class or RouterSAC)
        self.alpha_lr = 3e-4
        self.polyak = 0.995
        self.beta = 0.05
        self.twins = "mean"
        self.q_clip: float | None = 0.5
        self.target_entropy_share = 0.02
        self.critic_warmup = 1_000
        self.centre_rewards = True
        self.steps_per_update = 32
        self.replay_capacity = 50_000
        self.learning_starts = 5_000
        self.save_replay = False
        self.lr = 3e-4
        self.gamma = 1.0
        self.minibatch_size = 256

    def training(  # pyright: ignore[reportIncompatibleMethodOverride] (own settings first)
        self,
        *,
        alpha_lr: float = NOT_GIVEN,
        polyak: float = NOT_GIVEN,
        beta: float = NOT_GIVEN,
        twins: str = NOT_GIVEN,
        q_clip: float | None = NOT_GIVEN,
        target_entropy_share: float = NOT_GIVEN,
        critic_warmup: int = NOT_GIVEN,
        centre_rewards: bool = NOT_GIVEN,
        steps_per_update: int = NOT_GIVEN,
        replay_capacity: int = NOT_GIVEN,
        learning_starts: int = NOT_GIVEN,
        save_replay: bool = NOT_GIVEN,
        **kwargs: Any,
    ) -> Self:
        """Set some of the own settings, see above, and of RLlib's.

        Raises:
            InputError: one of RLlib's has no effect here.
        """
        self._take({
            "alpha_lr": alpha_lr, "polyak": polyak, "beta": beta, "twins": twins, "q_clip": q_clip,
            "target_entropy_share": target_entropy_share, "critic_warmup": critic_warmup, "centre_rewards": centre_rewards,
            "steps_per_update": steps_per_update, "replay_capacity": replay_capacity, "learning_starts": learning_starts,
            "save_replay": save_replay,
        })  # fmt: skip
        return super().training(**kwargs)

    def validate(self) -> None:
        """Check the settings.

        Raises:
            InputError: one is not valid, or would have no effect.
        """
        for name in ("lr", "alpha_lr", "steps_per_update", "replay_capacity", "minibatch_size"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} = {getattr(self, name)}: must be positive")
        for name in ("gamma", "polyak", "target_entropy_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be from 0 to 1")
        if self.twins not in ("mean", "min"):
            raise InputError(f"twins = {self.twins!r}: must be 'mean' or 'min'")
        if self.learning_starts > self.replay_capacity:
            raise InputError(
                f"learning_starts = {self.learning_starts}: must not exceed replay_capacity = {self.replay_capacity}"
            )
        for name in ("beta", "critic_warmup"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} = {getattr(self, name)}: must be >= 0")
        if (self.num_learners or 0) > 1:
            raise InputError(
                f"num-learners = {self.num_learners}: sac learns in one process (0 or 1): its minibatches, "
                f"{self.minibatch_size} steps, are too small to be worth dividing"
            )
        super().validate()

    def get_default_learner_class(self) -> type[SACLearner]:
        """The learner."""
        return SACLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The module."""
        return RLModuleSpec(module_class=SACModule)


class RouterSAC(VectorAlgorithm):
    """Samples columns, stores them, and takes an optimizer step for every ``steps_per_update`` of them.

    Checkpoints hold the temperature, and the replay buffer where ``save_replay`` says so.
    """

    @classmethod
    def get_default_config(cls) -> RouterSACConfig:
        """The default settings."""
        return RouterSACConfig()

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
                columns = ring.sample(rows, self._rng, centred=self.config.centre_rewards)
            batch = MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(columns)}, env_steps=rows)
            update_learners(self, TrainingData(batch=batch), minibatch_size=size, num_epochs=1)

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


def sac_config(
    scenarios: Sequence[Group],
    *,
    seed: int,
    env_runners: int,
    learners: int = 0,
    gpus_per_learner: int = 0,
    rows: int,
    router: RouterSpec | PaperSpec,
    temperature: float = 0.015,
    lr: float | None = None,
    save_replay: bool = False,
    settings: SACSettings | None = None,
) -> RouterSACConfig:
    """Configuration of discrete SAC with the scenarios' rewards.

    Args:
        scenarios: variants to train in, which may differ in the number of experts, and the environments of each in a worker.
        seed: seed of weights, episodes and exploration.
        env_runners: worker processes that step environments; 0 steps them in this process.
        learners: number of learner processes; 0 learns in this process.
        gpus_per_learner: 0 or 1.
        rows: steps of each environment between two rounds of learning.
        router: specification of the router. That of the paper comes with its hyperparameters (``PAPER``) instead of ours, and has
            no temperature: its logits begin near 0.
        temperature: QoS that a difference of 1 in the logits stands for.
        lr: learning rate of actor and critics, if not the usual one.
        save_replay: whether checkpoints hold the replay buffer.
        settings: hyperparameters that differ from the usual ones.
    """
    settings = SACSettings() if settings is None else settings
    paper, known = isinstance(router, PaperSpec), first_scenarios({"scenarios": list(scenarios)})
    if paper:
        model: dict[str, Any] = {"paper": router.to_dict(), "temperature": 1.0}
    else:
        counterfactual = settings.impact_estimator and all(variant.observation.counterfactual for variant in known)
        model = {"router": router.to_dict(), "temperature": temperature, "counterfactual": counterfactual}
    if settings.initial_alpha is not None:
        model["initial_alpha"] = settings.initial_alpha
    environments = sum(count for _, count in scenarios)
    config = (
        RouterSACConfig()
        .environment(env_config={"scenarios": list(scenarios)})
        .env_runners(num_envs_per_env_runner=environments, rollout_fragment_length=rows)
        .rl_module(model_config=model)
        .training(save_replay=save_replay, **(({**PAPER, **_PLAIN} if paper else {}) | settings.training()))
        .debugging(seed=seed)
    )
    config = with_processes(config, env_runners=env_runners, learners=learners, gpus_per_learner=gpus_per_learner)
    return config if lr is None else config.training(lr=lr)
