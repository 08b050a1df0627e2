"""The router for any cluster that ships with the project: in clusters that nobody trained it for."""

from __future__ import annotations

import numpy as np
import pytest

from models.export.bundle import load_bundle, save_bundle
from rllib_envs.scenario import Scenario, with_workload
from rllib_envs.scenarios.load import load_scenario
from tuning.evaluation.matrix import start_simulation
from tuning.many_worlds.fleets import FIXED
from tuning.metrics.episode import mean_qos
from tuning.specs.routers import ANY_CLUSTER_ROUTER, parse_router
from tuning.specs.workloads import TraceOptions, make_workloads

ROUTER = f"bundle:{ANY_CLUSTER_ROUTER}"
SEEDS = [4_200, 4_201]


def qos(router: str, scenario: Scenario) -> float:
    simulation = start_simulation(parse_router(router), scenario, SEEDS)
    return float(np.mean([mean_qos(simulation.records(b)) for b in range(len(SEEDS))]))


def test_it_is_a_price_and_nothing_else():
    router = load_bundle(ANY_CLUSTER_ROUTER).router
    assert not list(router.parameters())
    assert sum(path.stat().st_size for path in ANY_CLUSTER_ROUTER.iterdir()) < 2**16


@pytest.mark.slow
@pytest.mark.parametrize("load", ["moderate", "heavy"])
@pytest.mark.parametrize("name", [*FIXED, "edge6", "edge3"])
def test_it_is_not_worse_than_impact_greedy_where_it_was_not_trained(name: str, load: str):
    scenario = FIXED[name]() if name in FIXED else load_scenario(name)
    (workload,) = make_workloads(scenario, (load,), (), TraceOptions(), None)
    world = with_workload(workload.scenario, requests=600)
    assert qos(ROUTER, world) >= qos("calibrated-impact-greedy", world) - 0.003


@pytest.mark.slow
def test_its_onnx_graph_scores_as_it_does_at_any_size(tmp_path):
    bundle = load_bundle(ANY_CLUSTER_ROUTER)
    assert save_bundle(tmp_path / "bundle", bundle.router, bundle.observation, {}, onnx=True) < 1e-5
