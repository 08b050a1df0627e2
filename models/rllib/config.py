"""The base configuration of our algorithms."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.utils.from_config import NotProvided

from models.rllib.build import router_spec
from models.rllib.rollout.env_groups import first_scenarios
from models.rllib.rollout.runner import VectorEnvRunner
from models.rllib.scenario import training_scenario
from models.router import check_observation
from rllib_envs import ENV_ID
from rllib_envs.errors import InputError
from rllib_envs.scenario import Scenario

ENVIRONMENT = f"rllib_envs:{ENV_ID}"
NOT_GIVEN: Any = NotProvided
"""Default of a keyword that leaves a setting as it is."""

_PATIENCE_S = 30.0  # with a worker, beside twice the time of the first: no machine that works is so much slower
_PROBE_S = 0.5  # with one that was started anew: it takes part in the next iteration otherwise
_CONNECTORS = ("env_to_module_connector", "module_to_env_connector", "learner_connector")
_EPISODE_CALLBACKS = ("on_episode_created", "on_episode_start", "on_episode_step", "on_episode_end")
_OF_RLLIB = frozenset(inspect.signature(AlgorithmConfig.training).parameters) - {"self"}
_PASSED_ON = frozenset({"model", "optimizer", "replay_buffer_config", "learner_class"})  # RLlib calls training with some itself


class VectorAlgorithmConfig(AlgorithmConfig):
    """RLlib's settings, for algorithms whose workers are ``VectorEnvRunner``.

    ``env_config`` holds ``scenario``, a value, a preset's name or a file; or ``scenarios``, (scenario, number of environments)
    pairs. A scenario given by name or file goes through ``training_scenario``; a value stays as it is.

    ``VectorEnvRunner`` samples fragments: there are no connectors, episode objects or episode callbacks. ``validate`` refuses
    them. It also refuses RLlib training settings that have no effect in these algorithms.
    """

    USED: ClassVar[frozenset[str]] = frozenset({"lr"})
    """RLlib's own settings of training that count."""
    NEEDS_COUNTERFACTUAL: ClassVar[bool] = True
    """Whether it learns from the true marginal QoS of every action."""

    def __init__(self, algo_class: Any = None) -> None:
        super().__init__(algo_class)
        self.env = ENVIRONMENT
        self.env_runner_cls = VectorEnvRunner
        self.num_envs_per_env_runner = 32
        self.rollout_fragment_length = 64
        self.sample_timeout_s = _PATIENCE_S
        # Connectors have no state here, and gathering it would wait for workers that hang.
        self.merge_env_runner_states = False
        self.broadcast_env_runner_states = False
        self.restart_failed_env_runners = True
        self.delay_between_env_runner_restarts_s = 0.0
        self.env_runner_health_probe_timeout_s = _PROBE_S

    def training(self, **kwargs: Any) -> Self:
        """Set some of RLlib's settings of training.

        Raises:
            InputError: one of them has no effect here.
            TypeError: there is none of that name.
        """
        for name in kwargs:
            if name in _OF_RLLIB - self.USED - _PASSED_ON:
                raise InputError(
                    f"training: {name}: {type(self).__name__} does not use it: allowed are its own settings and "
                    f"{', '.join(sorted(self.USED))}"
                )
        return super().training(**kwargs)

    def validate(self) -> None:
        """Check the settings, and prepare scenarios given by name or file for training.

        Raises:
            InputError: one is not valid, or would have no effect.
        """
        super().validate()
        if self.env not in (ENVIRONMENT, ENV_ID):
            raise InputError(f"env = {self.env!r}: must be {ENVIRONMENT!r}: {type(self).__name__} steps that alone")
        self._refuse_what_is_passed_over()
        self.env_config: Any = {**self.env_config, **_for_training(self.env_config)}
        for scenario in first_scenarios(self.env_config):
            self._check_scenario(scenario)

    def _take(self, given: Mapping[str, Any]) -> None:
        """Set the given ones of our own settings."""
        for name, value in given.items():
            if value is not NOT_GIVEN:
                setattr(self, name, value)

    def _refuse_what_is_passed_over(self) -> None:
        why = f"{type(self).__name__} samples fragments with VectorEnvRunner"
        for name in _CONNECTORS:
            if getattr(self, f"_{name}") is not None:
                raise InputError(f"{name}: {why}, which has no connectors: transform observations in an own scenario or module")
        given: Any = self.callbacks_class
        classes: list[Any] = list(given) if isinstance(given, list | tuple) else [given]
        for name in _EPISODE_CALLBACKS:
            usual = getattr(RLlibCallback, name)
            if getattr(self, f"callbacks_{name}") or any(getattr(one, name, usual) is not usual for one in classes):
                raise InputError(
                    f"callbacks.{name}: {why}, which has no episode objects: allowed are on_sample_end, on_train_result and the "
                    "others that are not of an episode"
                )
        if self.is_multi_agent:
            raise InputError(f"multi_agent: {why}: a router is one agent")

    def _check_scenario(self, scenario: Scenario) -> None:
        where, seen = f"env_config: scenario {scenario.name}", scenario.observation
        if self.NEEDS_COUNTERFACTUAL and not seen.counterfactual:
            raise InputError(
                f"{where}: observation.counterfactual = False: {type(self).__name__} learns from the true marginal QoS of every "
                "action: models.rllib.training_scenario turns it on"
            )
        if "paper" not in self.model_config:
            parts = [name for name in ("whatif", "information", "demand", "places") if getattr(seen, name)]
            check_observation(router_spec(self.model_config, parts), parts)


def _for_training(env_config: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of an ``env_config`` whose scenarios are given by name or file."""
    named: dict[str, Any] = {}
    if "scenario" in env_config:
        named["scenario"] = _dressed(env_config["scenario"])
    if "scenarios" in env_config:
        named["scenarios"] = [
            (tuple(map(_dressed, one)) if isinstance(one, list | tuple) else _dressed(one), count)
            for one, count in env_config["scenarios"]
        ]
    return named


def _dressed(scenario: Any) -> Scenario:
    return scenario if isinstance(scenario, Scenario) else training_scenario(scenario)
