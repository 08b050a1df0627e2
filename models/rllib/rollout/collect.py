"""Common training steps of our algorithms: sample from every worker, update the learners, send weights to the workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
    WEIGHTS_SEQ_NO,
)

from models.rllib.errors import LearnerFailed
from models.rllib.rollout.fragments import Fragment
from models.rllib.rollout.runner import VectorEnvRunner
from models.rllib.rollout.workers import Workers

T = TypeVar("T")
C = TypeVar("C", bound=AlgorithmConfig)


class VectorAlgorithm(Algorithm):
    """An algorithm with ``VectorEnvRunner`` workers that may fail.

    Attributes:
        rollout_workers: fault-tolerant calls to the rollout workers.
    """

    config: Any

    def setup(self, config: Any) -> None:
        """Set up the algorithm; all workers get the learners' weights."""
        super().setup(config)
        assert self.env_runner_group is not None
        self.rollout_workers = Workers(self.env_runner_group, self.config.sample_timeout_s)
        share_weights(self)

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Take back restarted workers; they get their state with the next request."""
        return self.rollout_workers.restore()

    def cleanup(self) -> None:
        """Stop all processes, also those that hang."""
        if hasattr(self, "rollout_workers"):
            self.rollout_workers.abandon()
        super().cleanup()


def with_processes(config: C, *, env_runners: int, learners: int, gpus_per_learner: int) -> C:
    """Add process counts and fault tolerance to a config.

    Args:
        config: the config to extend.
        env_runners: worker processes that step environments; 0 steps them in this process.
        learners: number of learner processes; 0 learns in this process.
        gpus_per_learner: 0 or 1.
    """
    config.env_runners(num_env_runners=env_runners)
    config.learners(num_learners=learners, num_gpus_per_learner=gpus_per_learner)
    return config


def collect(algorithm: VectorAlgorithm) -> list[Fragment]:
    """Collect a sample from each ``VectorEnvRunner`` that does not fail, and log their metrics.

    Returns:
        A fragment for each worker and scenario; of one worker at least.

    Raises:
        WorkersFailed: not even one worker can sample.
    """
    with algorithm.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
        answers = algorithm.rollout_workers.ask(_sample, steps=steps_sampled(algorithm))
    algorithm.metrics.aggregate([metrics for _, metrics in answers], key=ENV_RUNNER_RESULTS)
    return [fragment for fragments, _ in answers for fragment in fragments]


def steps_sampled(algorithm: Algorithm) -> int:
    """Environment steps that the workers have sampled since training began."""
    return int(algorithm.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0))


def share_weights(algorithm: Algorithm) -> None:
    """Copy the learners' weights to the local worker; other workers fetch them from there."""
    assert algorithm.env_runner_group is not None
    assert algorithm.learner_group is not None
    with algorithm.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
        state = algorithm.learner_group.get_state(f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}", inference_only=True)
        weights = {key: state[COMPONENT_LEARNER][key] for key in (COMPONENT_RL_MODULE, WEIGHTS_SEQ_NO)}
        local: Any = algorithm.env_runner_group.local_env_runner
        local.set_state(weights)


def ask_learners(algorithm: Algorithm, function: Callable[..., T], **arguments: Any) -> list[T]:
    """Call a function on each learner, and return the results.

    Raises:
        FloatingPointError: from the function.
        LearnerFailed: a learner's process has died.
    """
    group: Any = algorithm.learner_group
    results = list(group.foreach_learner(_guarded, function=function, arguments=arguments))
    lost = [result.get() for result in results if not result.ok]
    if lost or len(results) < max(len(group), 1):  # one that has failed before is not even asked
        raise LearnerFailed(f"a learner is lost{': ' if lost else ''}{str(lost[0]).splitlines()[0] if lost else ''}")
    found = [result.get() for result in results]
    for answer in found:
        if isinstance(answer, FloatingPointError):
            raise answer
    return found


def update_learners(algorithm: Algorithm, data: TrainingData, **arguments: Any) -> None:
    """Update every learner with the data, and log the first one's metrics, as all are equal.

    Raises:
        FloatingPointError: a loss or gradient is not finite.
        LearnerFailed: a learner's process has died.
    """
    assert algorithm.learner_group is not None
    shared = ray.put(data) if algorithm.learner_group.is_remote else data
    timesteps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: steps_sampled(algorithm)}
    with algorithm.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
        results = ask_learners(algorithm, _update, data=shared, timesteps=timesteps, **arguments)
        algorithm.metrics.aggregate(results[:1], key=LEARNER_RESULTS)


def learn_from_sample(algorithm: VectorAlgorithm) -> None:
    """One on-policy training step: sample, then learn once. The learner takes fragments as episodes."""
    update_learners(algorithm, TrainingData(episodes=collect(algorithm)))  # pyright: ignore[reportArgumentType] (fragments for episodes)
    share_weights(algorithm)


def _sample(runner: VectorEnvRunner) -> tuple[list[Fragment], Any]:
    fragments: Any = runner.sample()
    return fragments, runner.get_metrics()


def _guarded(learner: Any, *, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """The result, or a FloatingPointError as a value, as Ray counts a learner that raises as lost."""
    try:
        return function(learner, **arguments)
    except FloatingPointError as error:
        return error


def _update(learner: Any, *, data: Any, timesteps: dict[str, int], **arguments: Any) -> Any:
    data = ray.get(data) if isinstance(data, ray.ObjectRef) else data
    return learner.update(training_data=data, timesteps=timesteps, **arguments)
