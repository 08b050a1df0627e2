"""PPO on columns: its configuration and its training step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from models.rllib.config import NOT_GIVEN, VectorAlgorithmConfig
from models.rllib.ppo.learner import PPOLearner
from models.rllib.rollout.collect import VectorAlgorithm, learn_from_sample, with_processes
from models.rllib.rollout.env_groups import Group
from models.rllib.router_module import BaselineModule
from models.router import RouterSpec
from rllib_envs.errors import InputError


class RouterPPOConfig(VectorAlgorithmConfig):
    """Settings of PPO beside RLlib's own, of which it uses ``lr``.

    Attributes:
        lam: lambda of the generalised advantages.
        beta_per_s: discount rate, 1/s. A request stays for some ten seconds and costs others in that time.
        epochs: passes over a sample.
        minibatch: decisions in a gradient step.
        clip: bound on the probability ratio of an action in an iteration.
        warmup_steps: environment steps before the actor learns; its rate then rises over as many steps.
    """

    def __init__(self, algo_class: Any = None) -> None:
        super().__init__(algo_class or RouterPPO)
        self.lam = 0.95
        self.beta_per_s = 0.03
        self.epochs = 3
        self.minibatch = 2048
        self.clip = 0.2
        self.warmup_steps = 40_000
        self.lr = 1e-3

    def training(  # pyright: ignore[reportIncompatibleMethodOverride] (own settings first)
        self,
        *,
        lam: float = NOT_GIVEN,
        beta_per_s: float = NOT_GIVEN,
        epochs: int = NOT_GIVEN,
        minibatch: int = NOT_GIVEN,
        clip: float = NOT_GIVEN,
        warmup_steps: int = NOT_GIVEN,
        **kwargs: Any,
    ) -> Self:
        """Set some of the own settings, see above, and of RLlib's.

        Raises:
            InputError: one of RLlib's has no effect here.
        """
        self._take({
            "lam": lam, "beta_per_s": beta_per_s, "epochs": epochs, "minibatch": minibatch, "clip": clip,
            "warmup_steps": warmup_steps,
        })  # fmt: skip
        return super().training(**kwargs)

    def validate(self) -> None:
        """Check the settings.

        Raises:
            InputError: one is not valid, or would have no effect.
        """
        for name in ("lr", "epochs", "minibatch", "clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InputError(f"{name} = {getattr(self, name)}: must be positive")
        for name in ("lam", "clip"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} = {getattr(self, name)}: must be from 0 to 1")
        for name in ("beta_per_s", "warmup_steps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InputError(f"{name} = {getattr(self, name)}: must be >= 0")
        super().validate()

    def get_default_learner_class(self) -> type[PPOLearner]:
        """The learner."""
        return PPOLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The module."""
        return RLModuleSpec(module_class=BaselineModule)


class RouterPPO(VectorAlgorithm):
    """Samples once from every worker, learns from the whole sample, and sends the weights to the workers."""

    @classmethod
    def get_default_config(cls) -> RouterPPOConfig:
        """The default settings."""
        return RouterPPOConfig()

    def training_step(self) -> None:
        """One iteration."""
        learn_from_sample(self)


def ppo_config(
    scenarios: Sequence[Group],
    *,
    seed: int,
    lr: float,
    env_runners: int,
    learners: int = 0,
    gpus_per_learner: int = 0,
    rows: int,
    router: RouterSpec,
    temperature: float = 0.015,
) -> RouterPPOConfig:
    """Configuration of PPO on scenarios with counterfactuals.

    Args:
        scenarios: the training scenarios, which may differ in the number of experts, each with its environments in a worker.
        seed: seed of weights, episodes and exploration.
        lr: learning rate of actor and critic.
        env_runners: worker processes that step environments; 0 steps them in this process.
        learners: number of learner processes; 0 learns in this process.
        gpus_per_learner: 0 or 1.
        rows: steps of each environment in an iteration.
        router: specification of the router.
        temperature: QoS that a difference of 1 in the logits stands for.
    """
    config = (
        RouterPPOConfig()
        .environment(env_config={"scenarios": list(scenarios)})
        .env_runners(num_envs_per_env_runner=sum(count for _, count in scenarios), rollout_fragment_length=rows)
        .rl_module(model_config={"router": router.to_dict(), "temperature": temperature})
        .training(lr=lr)
        .debugging(seed=seed)
    )
    return with_processes(config, env_runners=env_runners, learners=learners, gpus_per_learner=gpus_per_learner)
