"""The comparison with the best heuristic while training goes on."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from models.export.bundle import load_bundle
from rllib_envs.scenarios.load import load_scenario
from tuning.evaluation.matrix import TUNING_SEEDS, start_simulation
from tuning.evaluation.tuned import shipped_tuned
from tuning.specs.prompts import with_predictions
from tuning.specs.routers import parse_router, with_tuned
from tuning.specs.workloads import TraceOptions, make_workloads
from tuning.training.validation import Validator
from tuning.training.variants import VariantOptions, base_scenario

EDGE6 = with_predictions(load_scenario("edge6"), "oracle-noise")
SHIPPED = Path(__file__).resolve().parents[3] / "tuning" / "presets" / "edge6-router"
OPTIONS = VariantOptions(
    scenario="edge6",
    load="mixed",
    requests=500,
    fleets=(),
    variation=False,
    observation=replace(EDGE6.observation, whatif=True, counterfactual=True, calibrate=True),
    reward=EDGE6.reward,
    predictions="oracle-noise",  # with which the shipped router was trained
)


class Always(torch.nn.Module):
    """Takes one action, whatever it sees; but for that, a router."""

    def __init__(self, action):
        super().__init__()
        self.action = action

    def forward(self, observation):
        assert "whatif" in observation
        return torch.nn.functional.one_hot(torch.full((len(observation["arrived"]),), self.action), 7).float()


@pytest.fixture(scope="module")
def validator():
    return Validator(base_scenario(OPTIONS), "mixed", seeds=2, requests=60)


def heuristic(load):
    """QoS of tuned impact-greedy on each seed."""
    (workload,) = make_workloads(EDGE6, (load,), (), TraceOptions(), 60)
    tuned = shipped_tuned(workload.scenario)
    spec = with_tuned(parse_router("impact-greedy"), tuned.choose(workload).parameters if tuned else {})
    simulation = start_simulation(spec, workload.scenario, TUNING_SEEDS[:2])
    return np.array([simulation.records(b).qos.mean() for b in range(2)])


def test_a_router_that_drops_everything_loses_all_that_the_heuristic_earns(validator):
    found = validator.compare(Always(6))
    assert list(found) == ["light", "moderate", "heavy"]
    for load, difference in found.items():
        baseline = heuristic(load)
        assert difference.mean == pytest.approx(-baseline.mean(), abs=0.02)  # calibration is not what makes a heuristic good
        assert difference.error == pytest.approx(1.96 * baseline.std(ddof=1) / np.sqrt(2), abs=0.02)


def test_a_comparison_says_what_the_router_did(validator):
    dropped, sent = (validator.compare(Always(action))["heavy"].figures for action in (6, 0))
    assert (dropped["share/drop"], dropped["drop_rate"], dropped["qos"]) == (1, 1, 0)
    assert not any(name.startswith("latency") for name in dropped)  # nothing finished
    assert sent[f"share/{EDGE6.experts[0].name}"] == 1
    assert sent["violation_rate"] + sent["rejected_rate"] > 0
    assert not any(name.startswith("impact") for name in sent)  # it tells none


def test_the_impact_that_a_router_expects_is_held_against_what_comes_of_it(validator):
    router = load_bundle(SHIPPED).router
    before = validator.compare(router)["moderate"].figures
    with torch.no_grad():
        biased = copy.deepcopy(router)
        biased.estimator.register_forward_hook(lambda *arguments: arguments[-1] + 0.5)
    after = validator.compare(biased)["moderate"].figures  # all experts alike: the same actions, but for drops
    assert before["impact_rmse"] < 0.3
    assert before["impact_correlation"] > 0.7
    assert after["impact_expected"] - after["impact_true"] > before["impact_expected"] - before["impact_true"] + 0.3
    assert after["impact_rmse"] > before["impact_rmse"] + 0.2


def test_a_comparison_can_be_repeated(validator):
    assert validator.compare(Always(3)) == validator.compare(Always(3)) != validator.compare(Always(0))


def test_under_one_load_there_is_one_comparison():
    for load in ("heavy", "own"):
        options = replace(OPTIONS, load=load)
        assert len(Validator(base_scenario(options), load, seeds=1, requests=20).compare(Always(6))) == 1
