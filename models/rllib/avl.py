"""AVL, impact-guided afterstate value learning: its configuration and its training step.

A decision is worth what it does to those present, which the impact estimator predicts, and what its afterstate is worth to
those to come. The first is learned by regression on the true marginal QoS of all actions, a training target that the simulator
knows. The second is learned from returns, in steps small enough to stay where they hold (``AVLLearner``).
"""

from __future__ import annotations

from typing import Any, Self

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import LEARNER_RESULTS, LEARNER_UPDATE_TIMER, NUM_ENV_STEPS_SAMPLED_LIFETIME, TIMERS

from models.rllib.avl_learner import AVLLearner
from models.rllib.avl_module import AVLModule
from models.rllib.collect import collect, share_weights, steps_sampled
from models.rllib.env_groups import Group
from models.rllib.runner import ColumnRunner
from models.router import RouterSpec
from rllib_envs import ENV_ID

_SERVED_LR = 0.1  # of the first learning rate: what is left of it at the end


class AVLConfig(AlgorithmConfig):
    """Settings of AVL.

    Attributes:
        lam: mix of horizons in the returns, 0 to 1.
        beta_per_s: discount rate. A request stays for some ten seconds, and what it costs others comes in that time.
        epochs: passes over a sample.
        minibatch: decisions in a gradient step.
        warmup: iterations before the future part learns: impact estimator and critic come first.
        clip: bound on how far the chance of an action may move in an iteration, as a ratio.
        kl_stop: the future part rests until the next sample once the router has moved so far from the one that sampled.
        keep: weight of the past in the served router, per iteration.
    """

    def __init__(self, algo_class: Any = None) -> None:
        super().__init__(algo_class or AVL)
        self.env_runner_cls = ColumnRunner
        self.lam = 0.998
        self.beta_per_s = 0.03
        self.epochs = 2
        self.minibatch = 4096
        self.warmup = 5
        self.clip = 0.2
        self.kl_stop = 0.02
        self.keep = 0.95

    @override(AlgorithmConfig)
    def training(self, **kwargs: Any) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride] (own settings first)
        """Set own settings by name, and those of every algorithm."""
        for name in ("lam", "beta_per_s", "epochs", "minibatch", "warmup", "clip", "kl_stop", "keep"):
            if name in kwargs:
                setattr(self, name, kwargs.pop(name))
        return super().training(**kwargs)

    @override(AlgorithmConfig)
    def get_default_learner_class(self) -> type[AVLLearner]:
        """The learner."""
        return AVLLearner

    @override(AlgorithmConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The module."""
        return RLModuleSpec(module_class=AVLModule)


class AVL(Algorithm):
    """Sample once from every worker, learn from all of it, hand out the weights."""

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> AVLConfig:
        """The default settings."""
        return AVLConfig()

    @override(Algorithm)
    def training_step(self) -> None:
        """One iteration."""
        fragments = collect(self)
        if not fragments:
            return  # every worker has failed: RLlib brings them back
        assert self.learner_group is not None
        with self.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
            results = self.learner_group.update(
                episodes=fragments,  # pyright: ignore[reportArgumentType] (columns for episodes)
                timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps_sampled(self)},
            )
            self.metrics.aggregate(results, key=LEARNER_RESULTS)
        share_weights(self)


def avl_config(
    scenarios: list[Group],
    *,
    seed: int,
    lr: float,
    total_steps: int | None,
    env_runners: int,
    rows: int,
    router: RouterSpec,
    temperature: float = 0.01,
) -> AVLConfig:
    """Configuration of AVL on scenarios with what-if results and counterfactuals.

    Args:
        scenarios: the worlds to train in, each with its number of environments in a worker.
        seed: seed of weights, episodes and exploration.
        lr: learning rate at first; it falls linearly to a tenth at ``total_steps``, if given.
        total_steps: environment steps of the whole run.
        env_runners: worker processes that step environments; 0 steps them in this process.
        rows: steps of each environment in an iteration.
        router: what the router is made of.
        temperature: QoS that a difference of 1 in the logits stands for.
    """
    config = (
        AVLConfig()
        .environment(f"rllib_envs:{ENV_ID}", env_config={"scenarios": scenarios})
        .env_runners(
            num_env_runners=env_runners,
            num_envs_per_env_runner=sum(count for _, count in scenarios),
            rollout_fragment_length=rows,
            gym_env_vectorize_mode="vector_entry_point",
        )
        .learners(num_learners=0)
        .rl_module(model_config={"router": router.to_dict(), "temperature": temperature})
        .training(lr=lr if total_steps is None else [[0, lr], [total_steps, lr * _SERVED_LR]])
        .fault_tolerance(restart_failed_env_runners=True)
        .debugging(seed=seed)
    )
    assert isinstance(config, AVLConfig)
    return config
