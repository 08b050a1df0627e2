"""Decisions without HTTP: where requests go, and where they never go."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gateway.decider import Decider
from gateway.request import RouteRequest
from rllib_envs.scenarios.load import load_scenario


def test_equal_experts_share_the_requests() -> None:
    """Also while nothing is under way anywhere: no expert is the first of those that tie."""
    one = load_scenario("edge6").experts[0]
    twins = replace(load_scenario("edge6"), experts=tuple(replace(one, name=name) for name in "abcd"))
    decider = Decider(twins)
    counts = np.zeros(4)
    for i in range(400):
        decision = decider.decide(RouteRequest(prompt_tokens=10), float(i), [True] * 4)
        assert decision.expert is not None
        assert sorted((decision.expert, *decision.ranking)) == [0, 1, 2, 3]
        decider.ledger.finished(decision.id, i + 0.5, output_tokens=10)
        counts[decision.expert] += 1
    assert counts.min() > 56  # of 100 expected: five standard deviations
