"""What training steps on columns have in common: sample once from every worker, give the workers new weights."""

from __future__ import annotations

from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    ENV_RUNNER_SAMPLING_TIMER,
    LEARNER_RESULTS,
    LEARNER_UPDATE_TIMER,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    SYNCH_WORKER_WEIGHTS_TIMER,
    TIMERS,
)

from models.rllib.columns import Fragment


def collect(algorithm: Algorithm) -> list[Fragment]:
    """One sample of each ``ColumnRunner``; their metrics are taken in.

    Returns:
        A fragment for each worker and scenario; none if every worker has failed: RLlib brings them back before the next step.
    """
    config: Any = algorithm.config
    with algorithm.metrics.log_time((TIMERS, ENV_RUNNER_SAMPLING_TIMER)):
        sample: Any = synchronous_parallel_sample(
            worker_set=algorithm.env_runner_group,  # pyright: ignore[reportArgumentType] (None before setup only)
            sample_timeout_s=config.sample_timeout_s,
            _uses_new_env_runners=True,
            _return_metrics=True,
        )
    fragments, results = sample
    if results:
        algorithm.metrics.aggregate(results, key=ENV_RUNNER_RESULTS)
    return fragments


def steps_sampled(algorithm: Algorithm) -> int:
    """Environment steps that the workers have sampled since training began."""
    return int(algorithm.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0))


def share_weights(algorithm: Algorithm) -> None:
    """Give the workers the weights of the learner, of which they take what they act with."""
    assert algorithm.env_runner_group is not None
    with algorithm.metrics.log_time((TIMERS, SYNCH_WORKER_WEIGHTS_TIMER)):
        algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=algorithm.learner_group, inference_only=True)


def learn_from_sample(algorithm: Algorithm) -> None:
    """A training step that learns from what it has just sampled, once; the learner takes fragments as episodes."""
    fragments = collect(algorithm)
    if not fragments:
        return  # every worker has failed: RLlib brings them back
    assert algorithm.learner_group is not None
    with algorithm.metrics.log_time((TIMERS, LEARNER_UPDATE_TIMER)):
        results = algorithm.learner_group.update(
            episodes=fragments,  # pyright: ignore[reportArgumentType] (columns for episodes)
            timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps_sampled(algorithm)},
        )
        algorithm.metrics.aggregate(results, key=LEARNER_RESULTS)
    share_weights(algorithm)
