"""The learning algorithms of a training run, configured."""

from __future__ import annotations

from typing import Any

from models.rllib.env_groups import Group
from tuning.training_options import Options


def algorithm_config(options: Options, groups: list[Group], *, seed: int) -> Any:
    """The configuration, an ``AlgorithmConfig`` to build from; the options are complete."""
    workers = options.num_env_runners or 0
    environments = options.envs_per_runner * max(workers, 1)
    return _avl(options, groups, seed=seed, env_runners=workers, rows=max(options.steps_per_iteration // environments, 1))


def _avl(options: Options, groups: list[Group], *, seed: int, env_runners: int, rows: int) -> Any:
    from models.rllib.avl import avl_config  # here and below: only the algorithm that is asked for, and none for --help

    return avl_config(
        groups,
        seed=seed,
        lr=options.learning_rate,
        total_steps=options.total_steps,
        env_runners=env_runners,
        rows=rows,
        router=options.spec,
        temperature=options.temperature,
    )
