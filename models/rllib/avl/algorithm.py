"""AVL, impact-guided afterstate value learning: its configuration and its training step.

The value of a decision has two parts: its impact on in-flight requests, which the impact estimator predicts, and the value of its
afterstate for later requests. The first is learned by regression on the true marginal QoS of all actions, a training target from
the simulator. The second is learned from returns, in clipped steps (``AVLLearner``).
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any, Self

import numpy as np
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.annotations import override
from ray.rllib.utils.metrics import TIMERS

from models.rllib.avl.learner import AVLLearner, Candidates
from models.rllib.avl.module import AVLModule
from models.rllib.avl.price_search import try_candidates
from models.rllib.avl.settings import AVLSettings
from models.rllib.config import NOT_GIVEN, VectorAlgorithmConfig
from models.rllib.rollout.collect import (
    VectorAlgorithm,
    ask_learners,
    learn_from_sample,
    share_weights,
    steps_sampled,
    with_processes,
)
from models.rllib.rollout.env_groups import Group, first_scenarios
from models.router import Router, RouterSpec
from rllib_envs.errors import InputError

_SERVED_LR = 0.1  # of the first learning rate: what is left of it at the end


class AVLConfig(VectorAlgorithmConfig):
    """RLlib's settings and, as attributes of the same names, those of ``AVLSettings``.

    Of RLlib's training settings only ``lr`` has an effect, a number or a schedule.

    Attributes:
        marginal_weight: weight of the marginal QoS in the scenarios' reward, set by ``validate``.

    Example:
        >>> algorithm = AVLConfig().environment(env_config={"scenario": "edge6"}).build_algo()
        >>> algorithm.train()["env_runners"]["qos_mean"]
    """

    def __init__(self, algo_class: Any = None) -> None:
        super().__init__(algo_class or AVL)
        self.lr = 1e-3
        self.marginal_weight = 1.0
        self._take(asdict(AVLSettings()))

    @override(AlgorithmConfig)
    def training(  # pyright: ignore[reportIncompatibleMethodOverride] (own settings first)
        self,
        *,
        lam: float = NOT_GIVEN,
        beta_per_s: float = NOT_GIVEN,
        epochs: int = NOT_GIVEN,
        minibatch: int = NOT_GIVEN,
        warmup: int = NOT_GIVEN,
        clip: float = NOT_GIVEN,
        kl_stop: float = NOT_GIVEN,
        keep: float = NOT_GIVEN,
        generations: int = NOT_GIVEN,
        refinements: int = NOT_GIVEN,
        population: int = NOT_GIVEN,
        search_variants: int = NOT_GIVEN,
        search_drawn: int = NOT_GIVEN,
        search_kinds: tuple[str, ...] = NOT_GIVEN,
        search_requests: int = NOT_GIVEN,
        **kwargs: Any,
    ) -> Self:
        """Set some of ``AVLSettings`` (documented there) and of RLlib's settings.

        Raises:
            InputError: one of RLlib's has no effect here.
        """
        self._take({
            "lam": lam, "beta_per_s": beta_per_s, "epochs": epochs, "minibatch": minibatch, "warmup": warmup, "clip": clip,
            "kl_stop": kl_stop, "keep": keep, "generations": generations, "refinements": refinements, "population": population,
            "search_variants": search_variants, "search_drawn": search_drawn, "search_kinds": search_kinds,
            "search_requests": search_requests,
        })  # fmt: skip
        return super().training(**kwargs)

    @override(AlgorithmConfig)
    def validate(self) -> None:
        """Check the settings.

        Raises:
            InputError: one is not valid (``AVLSettings``), or would have no effect.
        """
        AVLSettings(**{field.name: getattr(self, field.name) for field in fields(AVLSettings)})
        super().validate()
        rewards = [scenario.reward for scenario in first_scenarios(self.env_config)]
        for i, reward in enumerate(rewards):
            if reward != rewards[0]:
                raise InputError(f"env_config.scenarios[{i}]: reward = {reward}: must be that of the first, {rewards[0]}")
        self.marginal_weight = rewards[0].marginal_qos

    @override(AlgorithmConfig)
    def get_default_learner_class(self) -> type[AVLLearner]:
        """The learner."""
        return AVLLearner

    @override(AlgorithmConfig)
    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The module."""
        return RLModuleSpec(module_class=AVLModule)


class AVL(VectorAlgorithm):
    """Samples once from every worker, learns from the whole sample, and sends the weights to the workers."""

    @classmethod
    @override(Algorithm)
    def get_default_config(cls) -> AVLConfig:
        """The default settings."""
        return AVLConfig()

    @override(Algorithm)
    def training_step(self) -> None:
        """One iteration."""
        learn_from_sample(self)
        self._search_price()

    def _search_price(self) -> None:
        """Try a generation of prices on the workers, if there is one to try."""
        assert self.env_runner_group is not None
        config = self.config
        candidates = ask_learners(self, _candidates)[0]
        if candidates is None:
            return
        workers = max(self.env_runner_group.num_healthy_remote_workers(), 1)
        variants, drawn = -(-config.search_variants // workers), -(-config.search_drawn // workers)
        kinds, requests = config.search_kinds, config.search_requests * candidates.length
        with self.metrics.log_time((TIMERS, "price_search")):
            results = self.rollout_workers.ask(
                lambda runner: try_candidates(runner, candidates.terms, candidates.generation, variants, drawn, kinds, requests),
                steps=steps_sampled(self),
            )
        ask_learners(self, _report_fitness, qos=np.concatenate(results, axis=1))  # fewer variants, where a worker has failed
        share_weights(self)


def begin_from(algorithm: Algorithm, router: Router) -> None:
    """Let an algorithm that has not trained yet begin with the weights of a router of its specification.

    Args:
        algorithm: AVL.
        router: for instance of a bundle.

    Raises:
        LearnerFailed: a learner's process has died.
    """
    ask_learners(algorithm, _begin_from, state={name: value.cpu() for name, value in router.state_dict().items()})
    share_weights(algorithm)


def _begin_from(learner: AVLLearner, *, state: Any) -> None:
    learner.begin_from(state)


def _candidates(learner: AVLLearner) -> Candidates | None:
    return learner.candidates()


def _report_fitness(learner: AVLLearner, *, qos: Any) -> None:
    learner.report_fitness(qos)


def avl_config(
    scenarios: list[Group],
    *,
    seed: int,
    lr: float,
    total_steps: int | None,
    env_runners: int,
    learners: int = 0,
    gpus_per_learner: int = 0,
    rows: int,
    router: RouterSpec,
    temperature: float = 0.01,
    settings: AVLSettings | None = None,
) -> AVLConfig:
    """Configuration of AVL on scenarios with what-if results and counterfactuals.

    Args:
        scenarios: the variants to train in, each with its number of environments in a worker; all have the same reward.
        seed: seed of weights, episodes and exploration.
        lr: learning rate at first; it falls linearly to a tenth at ``total_steps``, if given.
        total_steps: environment steps of the whole run.
        env_runners: worker processes that step environments; 0 steps them in this process.
        learners: number of learner processes; 0 learns in this process.
        gpus_per_learner: 0 or 1.
        rows: steps of each environment in an iteration.
        router: specification of the router.
        temperature: QoS that a difference of 1 in the logits stands for.
        settings: settings of AVL; None for the defaults.
    """
    config = (
        AVLConfig()
        .environment(env_config={"scenarios": scenarios})
        .env_runners(
            num_envs_per_env_runner=sum(count for _, count in scenarios),
            rollout_fragment_length=rows,
            gym_env_vectorize_mode="vector_entry_point",
        )
        .rl_module(model_config={"router": router.to_dict(), "temperature": temperature})
        .training(
            lr=lr if total_steps is None else [[0, lr], [total_steps, lr * _SERVED_LR]],
            **asdict(settings or AVLSettings()),
        )
        .debugging(seed=seed)
    )
    return with_processes(config, env_runners=env_runners, learners=learners, gpus_per_learner=gpus_per_learner)
