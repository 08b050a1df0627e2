"""A shadow decides beside the acting policy, changes nothing, and what is drawn has the probability that is said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gateway.decider import Decider
from gateway.decision import RouteDecision
from gateway.policies import Verdict, without_drop
from gateway.request import RouteRequest
from rllib_envs.scenarios.load import load_scenario
from tests.gateway.traffic import play
from tuning.specs.routers import SHIPPED_ROUTER

EDGE6 = load_scenario("edge6")


def _decisions(policy: str, shadow: str | None) -> list[RouteDecision]:
    return play(Decider(EDGE6, policy, shadow=shadow), 60)


def _acts(found: list[RouteDecision]) -> list[object]:
    return [(x.expert, x.ranking, x.scores, x.predicted_ttft_s) for x in found]


@pytest.mark.parametrize("shadow", ["least-work", "random", "quality-greedy:cap=4", f"bundle:{SHIPPED_ROUTER}"])
@pytest.mark.parametrize("policy", ["impact-greedy", "random"])
def test_a_shadow_changes_nothing(policy: str, shadow: str) -> None:
    """To the last bit, also where both draw."""
    alone, beside = _decisions(policy, None), _decisions(policy, shadow)
    assert _acts(alone) == _acts(beside)
    assert all(x.shadow is None for x in alone)
    assert {x.shadow.policy for x in beside if x.shadow is not None} == {shadow}
    assert all(x.shadow is not None for x in beside)


@pytest.mark.parametrize("policy", ["impact-greedy", f"bundle:{SHIPPED_ROUTER}"])
def test_a_shadow_does_what_it_would_do_in_charge(policy: str) -> None:
    """Beside the same policy it decides the same, by the same scores: it is shown what it would be shown in charge."""
    found = [x for x in _decisions(policy, policy) if x.fallback is None]
    assert len(found) > 5
    assert [(x.expert, x.scores) for x in found] == [(x.shadow.expert, x.shadow.scores) for x in found if x.shadow is not None]


def test_a_pinned_request_has_no_shadow() -> None:
    """Nobody decides there."""
    decision = Decider(EDGE6, shadow="random").decide(RouteRequest(prompt_tokens=9, pinned=2), 0.0, [True] * 6)
    assert (decision.expert, decision.shadow) == (2, None)


def test_predictions_are_told() -> None:
    """Quality and length that a decision went by."""
    decision = Decider(EDGE6).decide(RouteRequest(prompt_tokens=9), 0.0, [True] * 6)
    assert decision.predicted_score == pytest.approx([x.mean_score for x in EDGE6.experts])
    assert decision.predicted_tokens == pytest.approx([x.mean_output_tokens for x in EDGE6.experts])


def test_random_has_its_probability() -> None:
    """One in as many as the request may go to."""
    decision = Decider(EDGE6, "random").decide(RouteRequest(prompt_tokens=9), 0.0, [True, False, True, True, False, False])
    assert decision.probability == pytest.approx(1 / 3)


def test_without_a_drop_the_probabilities_are_those_of_what_happens() -> None:
    """A redraw among the experts: counts against the probabilities that are said, by chi-square at 1e-6."""
    rng = np.random.default_rng(0)
    odds = np.array([0.1, 0.2, 0.3, 0.4])
    mask = np.array([True, True, True, False])
    counts, said = np.zeros(3), np.zeros(3)
    for _ in range(3000):
        action = int(rng.choice(4, p=odds))
        verdict = without_drop(Verdict(action, float(odds[action]), odds, odds), mask, rng)
        counts[verdict.action] += 1
        said[verdict.action] = verdict.probability
    assert said == pytest.approx(odds[:3] / 0.6)
    assert float((np.square(counts - 3000 * said) / (3000 * said)).sum()) < 27.6


def test_without_a_drop_the_best_expert_is_taken() -> None:
    """Of a policy that draws nothing; and nothing changes where it chose an expert."""
    rng = np.random.default_rng(0)
    mask = np.array([True, True, True, False])
    scores = np.array([0.1, 0.3, 0.2, 0.5])
    assert without_drop(Verdict(3, 1.0, scores), mask, rng).action == 1
    chosen = Verdict(2, 1.0, scores)
    assert without_drop(chosen, mask, rng) is chosen


def test_the_shadow_keeps_to_where_a_request_may_go() -> None:
    """It is asked about the same experts."""
    decider = Decider(replace(EDGE6), "least-work", shadow="quality-greedy")
    for i in range(20):
        decision = decider.decide(RouteRequest(prompt_tokens=50), float(i), [False, True, False, True, False, False])
        assert decision.shadow is not None
        assert decision.shadow.expert in (1, 3)
