"""A group of environments with a world for each: each keeps its own."""

from dataclasses import replace

import numpy as np
import pytest

from models.rllib.rollout.env_groups import EnvGroups, groups_of
from rllib_envs.env import EdgeRoutingVectorEnv
from rllib_envs.errors import InputError
from rllib_envs.scenario import Predictions, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.simulation import Simulation


def world(name="edge6", load=10.0, **workload):
    scenario = with_workload(load_scenario(name), **{"load": load, "requests": 20, **workload})
    return replace(scenario, capacity_rps=24.0)


def test_each_environment_is_the_single_one_of_its_world():
    variants = [world(load=5.0), world(load=40.0), replace(world(), predictions=Predictions(score_sd=0.4))]
    together = EdgeRoutingVectorEnv(3, variants[0], variants=variants)
    together.reset(seed=[4, 5, 6])
    alone = [EdgeRoutingVectorEnv(1, own) for own in variants]
    for i, env in enumerate(alone):
        env.reset(seed=4 + i)
    for step in range(45):  # beyond the end of the first episode
        actions = np.array([step % 6, (step + 1) % 6, (step + 2) % 6])
        observation, rewards, *_ = together.step(actions)
        for i, env in enumerate(alone):
            own, reward, *_ = env.step(actions[i : i + 1])
            assert rewards[i] == reward[0]
            assert all(np.array_equal(observation[key][i], own[key][0]) for key in own)


def test_groups_of_variants_stand_beside_groups_of_one():
    groups = EnvGroups(groups_of({"scenarios": [((world(load=5.0), world(load=40.0)), 2), (world("edge3"), 1)]}, 3))
    assert [group.num_envs for group in groups.groups] == [2, 1]
    assert [w.workload.load for w in groups.groups[0].simulation.variants] == [5.0, 40.0]


@pytest.mark.parametrize(
    ("scenarios", "message"),
    [
        ([((world(), world()), 4)], "2 scenarios for 4 environments"),
        ([((world(), world("edge3")), 2), (world(), 2)], r"variants\[1\] \(edge3\): only arrivals, load"),
        ([((world(), world(requests=9)), 2), (world(), 2)], r"variants\[1\]"),
    ],
)
def test_variants_that_do_not_go_together_are_named(scenarios, message):
    with pytest.raises(InputError, match=message):
        EnvGroups(groups_of({"scenarios": scenarios}, 4))


def test_a_simulation_needs_a_world_for_each_cluster():
    with pytest.raises(ValueError, match="variants has 2 entries"):
        Simulation(world(), 3, variants=[world(), world()])
