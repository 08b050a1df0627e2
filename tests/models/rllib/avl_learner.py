"""A small configuration of AVL, and what tests ask of its learners."""

from dataclasses import replace

import torch
from ray.rllib.core import DEFAULT_MODULE_ID

from models.rllib.avl.algorithm import avl_config
from rllib_envs.scenarios.load import load_scenario
from tests.models.observed import ENCODERS

COUNTS = (4, 3)  # environments of edge6 and of edge3
ROWS = 45  # of 30 requests each: an end for every environment, and the beginning of another episode
BETA, LAM = 0.1, 0.9


def groups(six):
    same = {name: getattr(six, name) for name in ("workload", "predictions", "capacity_rps", "reward", "observation")}
    return list(zip((six, replace(load_scenario("edge3"), **same)), COUNTS, strict=True))


def config(scenario, router="han", rows=ROWS, seed=3, total_steps=None, lr=1e-2, **training):
    spec = ENCODERS[router] if isinstance(router, str) else router
    made = avl_config(
        groups(scenario), seed=seed, lr=lr, total_steps=total_steps, env_runners=0, rows=rows, router=spec, temperature=0.05
    )
    return made.training(**{"warmup": 1, "beta_per_s": BETA, "lam": LAM, "generations": 0} | training)


def learner_of(algorithm):
    return algorithm.learner_group._learner


def module_of(learner):
    return learner.module[DEFAULT_MODULE_ID].unwrapped()


def weights(learner):
    return {key: value.clone() for key, value in module_of(learner).state_dict().items()}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
