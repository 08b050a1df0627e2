"""Double DQN whose exploration follows a heuristic: its configuration and its training step.

Double Q-learning routes requests to language models in arXiv 2401.07886; arXiv 2408.13510 adds guidance by a heuristic. Here the
heuristic chooses actions to explore.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from models.rllib.config import NOT_GIVEN, VectorAlgorithmConfig
from models.rllib.dqn.exploration import Exploration
from models.rllib.dqn.learner import DQNLearner
from models.rllib.dqn.module import DQNModule
from models.rllib.dqn.runner import GuidedEnvRunner
from models.rllib.learning.replay_algorithm import ReplayAlgorithm, check_positive, check_replay_settings
from models.rllib.rollout.collect import ask_learners, share_weights, steps_sampled, with_processes
from models.rllib.rollout.env_groups import Group, first_scenarios
from models.router import RouterSpec
from rllib_envs.baselines import HEURISTICS
from rllib_envs.errors import InputError

_TAU = "tau"  # of an observation, not of the heuristic: all of a scenario's readers share it


class RouterDQNConfig(VectorAlgorithmConfig):
    """Settings of DQN beside RLlib's ``lr``, ``gamma`` and ``minibatch_size``.

    It learns from the scenarios' rewards.

    Attributes:
        guide: name of the heuristic that exploration follows.
        guide_parameters: its parameters; those not given have their defaults.
        epsilon: share of decisions that explore, at first and at last.
        guidance: share of these that follow the heuristic, at first and at last.
        explore_steps: environment steps in which both go from the first to the last.
        polyak: EMA weight of the target network.
        beta: discount rate of time, 1/s.
        steps_per_update: environment steps for each optimizer step.
        replay_capacity: environment steps to keep, some 6 kB each with six experts.
        learning_starts: environment steps in the replay buffer before the first optimizer step.
        save_replay: whether checkpoints hold the replay buffer. Without it, a restored run first fills a new one.
    """

    USED = frozenset({"lr", "gamma", "minibatch_size"})
    NEEDS_COUNTERFACTUAL = False

    def __init__(self, algo_class: Any = None) -> None:
        super().__init__(algo_class or RouterDQN)
        self.env_runner_cls = GuidedEnvRunner
        self.guide = "impact-greedy"
        self.guide_parameters: Mapping[str, float] = {}
        self.epsilon = (0.5, 0.05)
        self.guidance = (0.9, 0.5)
        self.explore_steps = 200_000
        self.polyak = 0.995
        self.beta = 0.05
        self.steps_per_update = 32
        self.replay_capacity = 50_000
        self.learning_starts = 5_000
        self.save_replay = False
        self.lr = 3e-4
        self.gamma = 1.0
        self.minibatch_size = 256

    @property
    def schedules(self) -> Exploration:
        """The schedules of exploration."""
        return Exploration(epsilon=self.epsilon, guidance=self.guidance, steps=self.explore_steps)

    def training(  # pyright: ignore[reportIncompatibleMethodOverride] (own settings first)
        self,
        *,
        guide: str = NOT_GIVEN,
        guide_parameters: Mapping[str, float] = NOT_GIVEN,
        epsilon: tuple[float, float] = NOT_GIVEN,
        guidance: tuple[float, float] = NOT_GIVEN,
        explore_steps: int = NOT_GIVEN,
        polyak: float = NOT_GIVEN,
        beta: float = NOT_GIVEN,
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
            "guide": guide, "guide_parameters": guide_parameters, "epsilon": epsilon, "guidance": guidance,
            "explore_steps": explore_steps, "polyak": polyak, "beta": beta, "steps_per_update": steps_per_update,
            "replay_capacity": replay_capacity, "learning_starts": learning_starts, "save_replay": save_replay,
        })  # fmt: skip
        return super().training(**kwargs)

    def validate(self) -> None:
        """Check the settings.

        Raises:
            InputError: one is not valid, or would have no effect.
        """
        check_replay_settings(self, "dqn")
        check_positive(self, "explore_steps")
        for name in ("epsilon", "guidance"):
            ends = getattr(self, name)
            if len(ends) != 2 or not all(0 <= share <= 1 for share in ends):
                raise InputError(f"{name} = {ends}: must be two shares from 0 to 1, at first and at last")
        self._check_guide()
        super().validate()
        needs = HEURISTICS[self.guide].needs
        for scenario in first_scenarios(self.env_config):
            for need in sorted(needs):
                if not getattr(scenario.observation, need):
                    raise InputError(
                        f"guide = {self.guide!r}: it needs observation.{need} = True, which scenario {scenario.name} has not"
                    )

    def _check_guide(self) -> None:
        if self.guide not in HEURISTICS:
            raise InputError(f"guide = {self.guide!r}: unknown; allowed are {', '.join(HEURISTICS)}")
        known = {name: bounds for name, bounds in HEURISTICS[self.guide].parameters.items() if name != _TAU}
        for name, value in self.guide_parameters.items():
            if name not in known:
                raise InputError(f"guide = {self.guide!r}: parameter {name!r}: allowed are {', '.join(known) or 'none'}")
            if not known[name].low <= value <= known[name].high:
                raise InputError(
                    f"guide = {self.guide!r}: {name} = {value:g}: must be from {known[name].low:g} to {known[name].high:g}"
                )

    def get_default_learner_class(self) -> type[DQNLearner]:
        """The learner."""
        return DQNLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The module."""
        return RLModuleSpec(module_class=DQNModule)


class RouterDQN(ReplayAlgorithm):
    """A ``ReplayAlgorithm`` whose exploration follows the schedules of its configuration."""

    @classmethod
    def get_default_config(cls) -> RouterDQNConfig:
        """The default settings."""
        return RouterDQNConfig()

    def training_step(self) -> None:
        """Set how to explore, sample once, store, learn, and give the workers the new weights."""
        epsilon, guidance = self.config.schedules.at(steps_sampled(self))
        ask_learners(self, _set_exploration, epsilon=epsilon, guidance=guidance)
        share_weights(self)
        super().training_step()


def _set_exploration(learner: DQNLearner, *, epsilon: float, guidance: float) -> None:
    learner.set_exploration(epsilon=epsilon, guidance=guidance)


def dqn_config(
    scenarios: Sequence[Group],
    *,
    seed: int,
    env_runners: int,
    learners: int = 0,
    gpus_per_learner: int = 0,
    rows: int,
    router: RouterSpec,
    temperature: float = 0.015,
    lr: float | None = None,
    guide: str = "impact-greedy",
    guide_parameters: Mapping[str, float] | None = None,
    save_replay: bool = False,
) -> RouterDQNConfig:
    """Configuration of DQN with the scenarios' rewards.

    Args:
        scenarios: variants to train in, which may differ in the number of experts, and the environments of each in a worker.
        seed: seed of weights, episodes and exploration.
        env_runners: worker processes that step environments; 0 steps them in this process.
        learners: number of learner processes; 0 learns in this process.
        gpus_per_learner: 0 or 1.
        rows: steps of each environment between two rounds of learning.
        router: specification of the router.
        temperature: QoS that a difference of 1 in the logits stands for; training is epsilon-greedy, and does not use it.
        lr: learning rate, if not the usual one.
        guide: name of the heuristic that exploration follows.
        guide_parameters: its parameters.
        save_replay: whether checkpoints hold the replay buffer.
    """
    environments = sum(count for _, count in scenarios)
    config = (
        RouterDQNConfig()
        .environment(env_config={"scenarios": list(scenarios)})
        .env_runners(num_envs_per_env_runner=environments, rollout_fragment_length=rows)
        .rl_module(model_config={"router": router.to_dict(), "temperature": temperature})
        .training(guide=guide, guide_parameters=dict(guide_parameters or {}), save_replay=save_replay)
        .debugging(seed=seed)
    )
    config = with_processes(config, env_runners=env_runners, learners=learners, gpus_per_learner=gpus_per_learner)
    return config if lr is None else config.training(lr=lr)
