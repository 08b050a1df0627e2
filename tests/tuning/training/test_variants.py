"""The environment variants of training: loads that are spread, fleets beside, faults where they are asked for."""

from dataclasses import replace

import numpy as np
import pytest

from models.rllib.scenario import MARGINAL
from rllib_envs.capacity import capacity_rps
from rllib_envs.errors import InputError
from rllib_envs.scenario import Catalogue, Observation, Predictions, Reward, Scenario
from rllib_envs.scenarios.load import load_scenario
from tuning.training.variants import VariantOptions, base_scenario, information_levels, training_groups

TRACES = ("azure-conversation", "azure-code")
OBSERVATION = Observation(whatif=True, counterfactual=True)


def options(**changes):
    usual = {"scenario": "edge6", "load": "mixed", "requests": 50, "fleets": ("edge3",), "variation": True}
    return VariantOptions(**{**usual, "observation": OBSERVATION, "reward": MARGINAL, **changes})


def groups(environments=32, **changes):
    asked = options(**changes)
    return training_groups(base_scenario(asked), asked, environments)


def test_an_eighth_of_the_environments_is_in_each_other_fleet():
    (own, count), (fleet, few) = groups()
    assert (count, few) == (28, 4)
    assert (len(own), len(fleet)) == (28, 4)
    assert {world.n_experts for world in own} == {6}
    assert {world.n_experts for world in fleet} == {3}
    assert [count for _, count in groups(fleets=())] == [32]


def carried_rps(world):
    """By its cluster, of requests like its own."""
    return capacity_rps(replace(world, capacity_rps=None))


def test_loads_are_spread_evenly_in_logarithm_over_the_mixed_range_of_what_is_carried_of_such_requests():
    for worlds, _ in groups(fleets=("edge3", "edge4"), environments=64):
        for kind in ("poisson", *TRACES):
            alike = [world for world in worlds if world.workload.arrivals.kind == kind]
            shares = np.array([world.workload.load for world in alike]) / carried_rps(alike[0])
            low, high = worlds[0].workload.mixed_range
            np.testing.assert_allclose(shares[[0, -1]], [low, high] if len(alike) > 1 else (low * high) ** 0.5)
            np.testing.assert_allclose(np.diff(np.log(shares), 2), 0, atol=1e-9)


def test_an_eighth_of_the_environments_under_mixed_load_is_like_conversations_and_a_fifth_like_code():
    for worlds, count in groups(environments=64):
        kinds = [world.workload.arrivals.kind for world in worlds]
        assert [kinds.count(kind) for kind in ("azure-conversation", "azure-code")] == [count // 8, count // 5]
    assert {world.workload.arrivals.kind for worlds, _ in groups(environments=5) for world in worlds} == {"poisson"}


def test_a_given_load_is_that_of_all():
    (own, _), _ = groups(load="heavy")
    assert isinstance(own, Scenario)
    assert own.workload.load == "heavy"
    assert own.variation.burst_share == 0


def test_bursts_come_with_mixed_load_and_faults_with_variation():
    for variation, faulty in ((True, True), (False, False)):
        for worlds, _ in groups(variation=variation):
            assert all((world.variation is not None and world.variation.fault_share > 0) == faulty for world in worlds)
            for world in worlds:
                assert (world.variation is not None and world.variation.burst_share > 0) == (
                    world.workload.arrivals.kind == "poisson"
                )
    (own, _), _ = groups(variation=False, load="heavy")
    assert own.variation is None


def test_the_own_load_is_the_scenarios_and_so_is_the_rest():
    asked = options(scenario="paper3", load="own", fleets=(), variation=False, reward=Reward())
    world = base_scenario(asked)
    paper = load_scenario("paper3")
    assert (world.workload.load, world.workload.arrivals) == (paper.workload.load, paper.workload.arrivals)
    assert (world.experts, world.reward, world.observation) == (paper.experts, Reward(), OBSERVATION)
    assert world.workload.requests == 50
    assert training_groups(world, asked, 4) == [(world, 4)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fleets": ("edge3", "edge4"), "environments": 2}, "envs-per-runner = 2: must be more than the 2 fleets"),
        ({"fleets": ("edge1",)}, "edge1"),
        ({"load": "crushing"}, "load 'crushing'"),
        ({"scenario": "edge1"}, "edge1"),
    ],
)
def test_what_cannot_be_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        groups(**changes)


def test_with_information_levels_neighbours_are_told_more_or_less_at_every_load():
    plain, levelled = groups(), groups(information_levels=True)
    for (before, count), (after, same) in zip(plain, levelled, strict=True):
        assert count == same == len(after)
        laws = [scenario.predictions.law for scenario in after]
        assert laws == [("means", "auto", "oracle-noise", "oracle-noise")[i % 4] for i in range(count)]
        assert len({scenario.predictions for scenario in after}) == 4  # the last is nearly the truth
        own = before[0].predictions
        assert [replace(scenario, predictions=own) for scenario in after] == list(before)


def test_levels_also_come_where_all_environments_are_alike():
    ((scenarios, count),) = groups(environments=6, load="moderate", fleets=(), information_levels=True)
    assert count == len(scenarios) == 6
    assert len({scenario.predictions for scenario in scenarios}) == 4


def test_the_levels_of_a_file_are_those_of_its_tasks_and_predictors_too():
    base = load_scenario("edge6")
    workload = replace(base.workload, catalogue=Catalogue(kind="file", path="prompts.jsonl"))
    told = replace(base, workload=workload, predictions=Predictions(predictors="folder", length_factor=1.1))
    levels = information_levels(told)
    assert [level.law for level in levels] == ["means", "task-means", "auto", "oracle-noise", "oracle-noise"]
    assert [level.predictors for level in levels] == [None, None, "folder", None, None]
    assert {level.length_factor for level in levels} == {1.1}  # other errors stay
