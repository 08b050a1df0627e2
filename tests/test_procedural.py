"""Drawn scenarios: valid, reproducible, within the law that they are drawn from, and able to serve."""

from __future__ import annotations

import numpy as np
import pytest

from rllib_envs.scenario import Scenario
from rllib_envs.scenarios.load import parse_scenario
from rllib_envs.scenarios.procedural import TRAINING, UNSEEN, FleetLaw, draw_conditions, draw_fleet, draw_scenario
from rllib_envs.simulation import Simulation
from rllib_envs.workload.arrivals import draw_arrivals


def drawn(seed: int, law: FleetLaw = TRAINING, experts: int | None = 3) -> Scenario:
    return draw_scenario(np.random.default_rng([seed]), law=law, experts=experts, requests=60)


def test_a_seed_fixes_the_scenario_and_another_gives_another():
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize("rate_rps", [0.003, 0.02, 1.0, 500.0])
def test_arrivals_can_be_drawn_at_any_rate(rate_rps: float):
    rng = np.random.default_rng(3)
    for _ in range(60):
        arrivals, _ = draw_conditions(rng, rate_rps, 600)
        assert len(draw_arrivals(arrivals, rate_rps, 20, rng).arrival_s) == 20


@pytest.mark.parametrize("seed", range(4))
def test_a_drawn_scenario_is_what_its_yaml_says(seed: int):
    scenario = drawn(seed)
    assert parse_scenario(scenario.to_dict(), "here") == scenario


@pytest.mark.parametrize("name", ["training", *UNSEEN])
def test_figures_are_within_the_law(name: str):
    law = TRAINING if name == "training" else UNSEEN[name]
    for seed in range(30):
        fleet = draw_fleet(np.random.default_rng([seed]), law)
        slo_ms = 1e3 * fleet.slo_s_per_token
        assert law.experts[0] <= fleet.n_experts <= law.experts[1]
        assert law.slo_s[0] * 0.99 <= fleet.slo_s_per_token <= law.slo_s[1] * 1.01
        for expert in fleet.experts:
            engine = expert.engine
            assert engine.c0_ms < 0.76 * slo_ms
            assert engine.kv_tokens >= engine.max_model_len
            context = fleet.workload.catalogue.prompt_tokens_mean + expert.mean_output_tokens
            assert engine.c0_ms + engine.c_ms * context < slo_ms  # alone, a request of mean size is in time


def test_experts_of_a_fleet_alike_differ_in_the_name_alone():
    fleet = draw_fleet(np.random.default_rng([0]), UNSEEN["alike"], experts=5)
    assert len({(x.engine, x.mean_score, x.mean_output_tokens) for x in fleet.experts}) == 1


@pytest.mark.parametrize("name", ["giant", "cloud"])
def test_the_giant_is_the_fastest_and_the_best(name: str):
    for seed in range(10):
        giant, *others = draw_fleet(np.random.default_rng([seed]), UNSEEN[name]).experts
        assert giant.mean_score >= max(x.mean_score for x in others)
        assert giant.engine.c0_ms <= np.median([x.engine.c0_ms for x in others])


def test_a_drawn_fleet_serves_at_its_stated_capacity():
    for seed in range(3):
        scenario = drawn(seed)
        assert scenario.capacity_rps is not None
        assert scenario.capacity_rps >= 0.01 * scenario.n_experts
        simulation = Simulation(scenario, 1, show=False)
        simulation.start(0, seed)
        while not simulation.over.all():
            simulation.step(np.zeros(1, np.int64))
        assert simulation.records(0).status.size == 60
