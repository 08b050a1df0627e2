"""What tests of models share."""

from dataclasses import replace

import pytest

from rllib_envs.scenario import Reward, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.simulation import Simulation
from tuning.specs.prompts import with_predictions


@pytest.fixture(scope="session")
def small_scenario():
    """Short episodes of edge6 as the per-expert router is trained in them, with little noise: few steps have to do."""
    scenario = with_predictions(with_workload(load_scenario("edge6"), requests=30, load=15.0), "oracle-noise")
    return replace(
        scenario,
        capacity_rps=24.0,
        reward=Reward(realised_qos=0.0, marginal_qos=1.0),
        observation=replace(scenario.observation, whatif=True, counterfactual=True),
    )


@pytest.fixture
def small_simulation(small_scenario):
    simulation = Simulation(small_scenario, 4)
    simulation.start_all(list(range(4)))
    return simulation
