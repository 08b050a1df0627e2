"""What a gateway rebuilds from its own ledger is what the simulator shows, but for what nobody in front of an engine can know."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gateway.live import LiveCluster, Told
from gateway.policies import load_policy
from gateway.simulated import compare_actions, serve
from rllib_envs.heuristic import expert_feature, present, whatif_feature
from rllib_envs.scenario import Faults, Observation, Scenario, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.simulation import Simulation
from rllib_envs.view import View, view_of
from tests.worlds import random_world
from tuning.specs.routers import ANY_CLUSTER_ROUTER, SHIPPED_ROUTER

pytestmark = pytest.mark.slow

EXACT = (  # sums over those present, whether they run or wait, and what describes the engine
    "kv_reserved", "decode_backlog", "mean_budget_used", "max_budget_used", "score_present", "base_time", "sequence_time",
    "context_time", "prefill_time", "kv_capacity", "max_running", "length_drift", "mean_score",
)  # fmt: skip


def edge6(requests: int, load: str = "moderate") -> Scenario:
    return with_workload(load_scenario("edge6"), requests=requests, load=load)


@pytest.mark.parametrize("policy", ["impact-greedy", f"bundle:{SHIPPED_ROUTER}", f"bundle:{ANY_CLUSTER_ROUTER}"])
def test_a_gateway_decides_as_in_the_simulator(policy: str) -> None:
    scenario = edge6(400, "heavy")
    same = compare_actions(scenario, load_policy(policy, scenario.observation), seed=1)
    assert same >= 0.98


@pytest.mark.parametrize(
    ("policy", "tolerance"),
    [
        ("impact-greedy", 1e-4),
        (f"bundle:{SHIPPED_ROUTER}", 6e-3),  # calibration counts answers at other moments, so its corrections differ a little
    ],
)
def test_the_ledger_shows_what_the_simulator_shows(policy: str, tolerance: float) -> None:
    scenario = edge6(300)
    errors: list[np.ndarray] = []

    def look(live: LiveCluster, simulation: Simulation) -> None:
        mine, its = live.view, simulation.view
        np.testing.assert_array_equal(mine.action_mask, its.action_mask)
        np.testing.assert_array_equal(present(mine), present(its))
        np.testing.assert_allclose(mine.arrived, its.arrived, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(mine.cluster[:, :4], its.cluster[:, :4], atol=tolerance)  # gaps and loads
        for name in EXACT:
            a, b = expert_feature(mine, name), expert_feature(its, name)
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)
        errors.append(np.abs(whatif_feature(mine, "own_success") - whatif_feature(its, "own_success")))

    compare_actions(scenario, load_policy(policy, scenario.observation), 2, look)
    assert np.mean(errors) < 1e-3


@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_iteration_times_are_learned_from_tokens(factor: float) -> None:
    """As the simulator learns them from its engines: where the profile is right nothing is learned."""
    scenario = replace(edge6(400), faults=Faults(engine_factor=factor))
    seen: list[tuple[np.ndarray, ...]] = []

    def look(live: LiveCluster, simulation: Simulation) -> None:
        learned = live.world.calibration
        seen.append((learned.steps[0].copy(), simulation.world.calibration.steps[0].copy(), learned.prefills[0].copy()))

    compare_actions(scenario, load_policy("calibrated-impact-greedy", scenario.observation), 5, look)
    mine, its, prefills = seen[-1]
    known = prefills["samples"] > 5
    assert known.sum() >= 3
    np.testing.assert_allclose(prefills["log"][known], np.log(factor), atol=0.05)
    often = (mine["samples"] > 30) & (its["samples"] > 30)
    assert often.sum() >= 3
    np.testing.assert_allclose(mine["log"][often], its["log"][often], atol=0.01)
    np.testing.assert_allclose(mine["log"][often], np.log(factor), atol=0.03)


def test_nothing_depends_on_when_rows_move_together() -> None:
    """The same requests in a table that is full many times, and in one that never is."""
    scenario = replace(edge6(1), observation=Observation(whatif=True, calibrate=True, information=True, demand=True))
    clusters = [LiveCluster(scenario, capacity=rows) for rows in (512, 4096)]
    rng = np.random.default_rng(3)
    under_way: list[str] = []
    allowed = np.ones(6, np.bool_)
    now_s = 0.0
    for i in range(2500):
        now_s += rng.exponential(0.05)
        told = Told(rng.random(6), rng.integers(5, 400, 6).astype(np.float64), np.full(6, 0.5))
        prompt, expert = int(rng.integers(1, 900)), int(rng.integers(6))
        rows = [live.observe(prompt, told, 0, allowed, now_s) for live in clusters]
        for name, a, b in zip(View._fields, *(view_of(live.rows) for live in clusters), strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"{name} at request {i}")
        for live, row in zip(clusters, rows, strict=True):
            live.send(f"r{i}", row, expert, prompt, told, allowed, streams=i % 7 > 0)
        under_way.append(f"r{i}")
        for key in rng.choice(under_way, 4):
            for live in clusters:
                live.ledger.streamed(str(key), 5, now_s)
        if len(under_way) > 20 or rng.random() < 0.3:
            gone = under_way.pop(int(rng.integers(len(under_way))))
            how = rng.choice(["finished", "cancelled", "failed"], p=[0.8, 0.1, 0.1])
            for live in clusters:
                getattr(live.ledger, how)(gone, now_s)
    assert clusters[0].ledger.rows < 512 < clusters[1].ledger.rows


def test_drawn_engines_are_seen_as_they_are() -> None:
    """Engines under every kind of pressure: what was decided once is decided again nearly always."""
    same: list[float] = []
    for seed in range(8):
        scenario, _, _ = random_world(np.random.default_rng(seed))
        scenario = with_workload(scenario, requests=150)
        policy = load_policy("impact-greedy", replace(scenario.observation, whatif=True))
        same.append(compare_actions(scenario, policy, seed))
    assert np.mean(same) > 0.95


def test_gateways_that_share_their_ledgers_decide_as_one() -> None:
    """Eight that share lose next to nothing, blind ones lose far more."""
    scenario = edge6(400, "heavy")
    policy = load_policy(f"bundle:{SHIPPED_ROUTER}", scenario.observation)
    one, shared, blind = (
        np.mean([serve(scenario, policy, seed, gateways=n, share=share) for seed in range(2)])
        for n, share in ((1, False), (8, True), (8, False))
    )
    assert shared > one - 0.005
    assert blind < one - 0.01
