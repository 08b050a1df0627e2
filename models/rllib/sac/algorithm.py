"""Discrete SAC on columns: its configuration and its training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from models.paper.networks import PaperSpec
from models.rllib.config import NOT_GIVEN, VectorAlgorithmConfig
from models.rllib.learning.replay import Ring
from models.rllib.learning.replay_algorithm import ReplayAlgorithm, check_positive, check_replay_settings, check_share
from models.rllib.rollout.collect import with_processes
from models.rllib.rollout.env_groups import Group, first_scenarios
from models.rllib.sac.learner import SACLearner
from models.rllib.sac.module import SACModule
from models.rllib.sac.settings import SACSettings
from models.router import RouterSpec
from rllib_envs.errors import InputError

PAPER: Mapping[str, Any] = {"lr": 3e-5, "alpha_lr": 3e-4, "gamma": 0.99, "beta": 0.0, "minibatch_size": 256, "polyak": 0.995}
"""What arXiv 2508.00234 trains with. Its discount is that of a step, however long."""

_PLAIN: Mapping[str, Any] = {"target_entropy_share": 0.3, "critic_warmup": 0, "centre_rewards": False}
"""What it does not have: our changes for a router that begins with a price."""


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
        check_replay_settings(self, "sac")
        check_positive(self, "alpha_lr")
        check_share(self, "target_entropy_share")
        if self.twins not in ("mean", "min"):
            raise InputError(f"twins = {self.twins!r}: must be 'mean' or 'min'")
        if not 0 <= self.critic_warmup < float("inf"):
            raise InputError(f"critic_warmup = {self.critic_warmup}: must be >= 0")
        super().validate()

    def get_default_learner_class(self) -> type[SACLearner]:
        """The learner."""
        return SACLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The module."""
        return RLModuleSpec(module_class=SACModule)


class RouterSAC(ReplayAlgorithm):
    """Samples columns, stores them, and takes an optimizer step for every ``steps_per_update`` of them.

    Checkpoints hold the temperature, and the replay buffer where ``save_replay`` says so.
    """

    @classmethod
    def get_default_config(cls) -> RouterSACConfig:
        """The default settings."""
        return RouterSACConfig()

    def draw(self, ring: Ring, rows: int) -> dict[str, Any]:
        """Steps from the replay buffer, with rewards centred where the settings say so."""
        return ring.sample(rows, self._rng, centred=self.config.centre_rewards)


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
