"""The learning algorithms of a training run, configured."""

from __future__ import annotations

from typing import Any

from models.paper.networks import PaperSpec
from models.rllib.rollout.env_groups import Group
from models.router import RouterSpec
from rllib_envs.errors import InputError
from rllib_envs.scenario import Scenario
from tuning.training.options import PAPER_NETWORKS, TrainOptions, guide_of

_LEARNING_RATES = {"avl": 1e-3, "ppo": 1e-3, "sac": 3e-4, "dqn": 3e-4}
_SMOKE: dict[str, dict[str, Any]] = {
    "avl": {"warmup": 1, "generations": 1, "population": 4, "search_variants": 3, "search_requests": 20},
    "ppo": {"warmup_steps": 50},
    "sac": {"learning_starts": 50, "minibatch_size": 16, "replay_capacity": 2_000, "critic_warmup": 2},
    "dqn": {"learning_starts": 50, "minibatch_size": 16, "replay_capacity": 2_000},
}
"""What makes every part learn within a tiny run."""


def learning_rate(options: TrainOptions) -> float | None:
    """The learning rate; None if only the algorithm knows its several rates."""
    if options.lr is not None or options.preset in PAPER_NETWORKS:
        return options.lr
    return _LEARNING_RATES[options.algo]


def network_spec(options: TrainOptions, scenario: Scenario) -> RouterSpec | PaperSpec:
    """The specification of the router's network."""
    if options.preset in PAPER_NETWORKS:
        return PaperSpec(experts=scenario.n_experts, told_apart=options.told_apart)
    return options.spec


def algorithm_config(options: TrainOptions, groups: list[Group], spec: RouterSpec | PaperSpec, *, seed: int) -> Any:
    """Build the ``AlgorithmConfig``; the options are complete, and Ray has been started.

    Raises:
        InputError: the options ask for a missing GPU.
    """
    workers = options.num_env_runners or 0
    environments = options.envs_per_runner * max(workers, 1)
    common: dict[str, Any] = {
        "seed": seed,
        "temperature": options.temperature,
        "env_runners": workers,
        "learners": options.num_learners,
        "gpus_per_learner": gpus_per_learner(options),
        "rows": max(options.steps_in_iteration // environments, 1),
        "router": spec,
    }
    config = _configure(options, groups, common)
    if options.smoke and options.algo == "avl":
        config = config.training(search_drawn=min(options.avl.search_drawn, 1))
    return config.training(**_SMOKE[options.algo]) if options.smoke else config


def gpus_per_learner(options: TrainOptions) -> int:
    """GPUs for each learner: as many as the options say, or 1 if there are enough.

    Raises:
        InputError: there are not as many as the options say.
    """
    learners = max(options.num_learners, 1)
    if options.gpus_per_learner == 0:
        return 0
    free = _free_gpus(options)
    if options.gpus_per_learner and free < learners:
        where = "in Ray's cluster" if options.num_learners else "for this process"
        raise InputError(f"gpus-per-learner = {options.gpus_per_learner}: {learners} needed, {free} free {where}")
    return int(free >= learners)


def _free_gpus(options: TrainOptions) -> int:
    import ray  # here: --help needs neither
    import torch

    if options.num_learners:
        return int(ray.available_resources().get("GPU", 0))
    if ray.is_initialized() and ray.get_runtime_context().get_actor_id():
        return len(ray.get_gpu_ids())  # a trial of a sweep sees all GPUs, and has those that were given to it
    return int(torch.cuda.is_available())


def _configure(options: TrainOptions, groups: list[Group], common: dict[str, Any]) -> Any:
    lr = _LEARNING_RATES[options.algo] if options.lr is None else options.lr
    # Imported here, and not above: only the algorithm that is asked for, and none for --help.
    if options.algo == "avl":
        from models.rllib.avl.algorithm import avl_config

        return avl_config(groups, lr=lr, total_steps=options.total_steps, settings=options.avl, **common)
    if options.algo == "ppo":
        from models.rllib.ppo.algorithm import ppo_config

        return ppo_config(groups, lr=lr, **common)
    if options.algo == "dqn":
        from models.rllib.dqn.algorithm import dqn_config

        guide, parameters = guide_of(options)
        kept = options.keep_replay
        return dqn_config(groups, lr=options.lr, guide=guide, guide_parameters=parameters, save_replay=kept, **common)
    from models.rllib.sac.algorithm import sac_config

    return sac_config(groups, lr=options.lr, save_replay=options.keep_replay, settings=options.sac, **common)
