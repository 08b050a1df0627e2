"""A trained router decides where it was trained, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gateway.decider import Decider
from gateway.policies import load_policy
from gateway.request import RouteRequest
from models.export.bundle import load_bundle, save_bundle
from rllib_envs.scenarios.load import load_scenario
from tests.gateway.clocks import steady_decider
from tuning.specs.routers import ANY_CLUSTER_ROUTER, SHIPPED_ROUTER

pytestmark = pytest.mark.slow

ALL = [True] * 6
ROOT = Path(__file__).resolve().parents[2]


def test_engines_outside_the_training_range_are_told_at_once() -> None:
    scenario = load_scenario("edge6")
    assert steady_decider(scenario, f"bundle:{SHIPPED_ROUTER}").outside is None
    slow = replace(
        scenario,
        experts=tuple(replace(e, engine=replace(e.engine, overhead=10 * e.engine.overhead)) for e in scenario.experts),
    )
    decider = steady_decider(slow, f"bundle:{SHIPPED_ROUTER}")
    assert decider.outside is not None
    assert "trained on" in decider.outside
    decision = decider.decide(RouteRequest(prompt_tokens=100), 0.0, ALL)
    assert (decision.policy, decision.fallback) == ("impact-greedy", "outside")
    assert decider.fallbacks == {"outside": 1}


def test_traffic_outside_the_training_range_is_left_to_the_fallback_while_it_lasts() -> None:
    """The averages follow: long prompts lead out of the range, usual ones lead back."""
    decider = steady_decider(load_scenario("edge6"), f"bundle:{ANY_CLUSTER_ROUTER}")
    now_s, said = 0.0, []
    for i in range(900):
        now_s += 0.1
        long = 100 <= i < 600
        decision = decider.decide(RouteRequest(prompt_tokens=4000 if long else 150), now_s, ALL)
        said.append(decision.fallback)
        if decision.expert is not None:
            decider.ledger.finished(decision.id, now_s + 0.05, output_tokens=200)
    assert set(said[:100]) == {None}
    assert "outside" in said[100:600]
    assert said[-1] is None
    assert decider.fallbacks["outside"] == said.count("outside")


def test_without_predictions_a_router_that_was_trained_on_some_does_not_decide() -> None:
    """Means are the same for every request, which the shipped router never saw."""
    decider = steady_decider(load_scenario("edge6"), f"bundle:{SHIPPED_ROUTER}")
    decisions = [decider.decide(RouteRequest(prompt_tokens=150), 0.1 * i, ALL) for i in range(100)]
    assert [x.fallback for x in decisions] == [None] * 49 + ["outside"] * 51
    assert "score_spread" in decisions[-1].reasons


def test_limits_of_tokens_bound_what_is_predicted() -> None:
    scenario = load_scenario("edge6")
    usual, bounded = (Decider(scenario).decide(RouteRequest(prompt_tokens=10, max_tokens=most), 0.0, ALL) for most in (None, 50))
    np.testing.assert_array_equal(bounded.predicted_tokens, np.minimum(usual.predicted_tokens, 50))
    np.testing.assert_array_equal(bounded.predicted_score, usual.predicted_score)


def test_onnx_decides_as_torch_does_and_without_it(tmp_path: Path) -> None:
    bundle = load_bundle(SHIPPED_ROUTER)
    save_bundle(tmp_path / "router", bundle.router, bundle.observation, bundle.about, onnx=True)
    scenario = load_scenario("edge6")
    one, other = (
        steady_decider(scenario, load_policy(f"bundle:{x}", scenario.observation)) for x in (tmp_path / "router", SHIPPED_ROUTER)
    )
    for i in range(30):
        mine, its = (d.decide(RouteRequest(prompt_tokens=20 * i + 1), 0.05 * i, ALL) for d in (one, other))
        np.testing.assert_allclose(mine.scores, its.scores, atol=1e-3)
        assert mine.expert == its.expert
    code = (
        "import sys; from gateway.decider import Decider; from gateway.request import RouteRequest;"
        "from rllib_envs.scenarios.load import load_scenario; d = Decider(load_scenario('edge6'), f'bundle:{sys.argv[1]}');"
        "d.decide(RouteRequest(prompt_tokens=9), 0.0, [True] * 6); print('torch' in sys.modules, 'ray' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "router")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False False\n"
