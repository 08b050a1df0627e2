"""Traffic without HTTP: a decider, and engines that answer as their profiles say."""

from __future__ import annotations

from gateway.decider import Decider
from gateway.decision import RouteDecision
from gateway.request import RouteRequest


def play(decider: Decider, count: int, gap_s: float = 0.05) -> list[RouteDecision]:
    """Decide ``count`` requests; each is answered a second later with as many tokens as it had in its prompt."""
    n = decider.scenario.n_experts
    found: list[RouteDecision] = []
    for i in range(count):
        now_s = i * gap_s
        if (late := i - round(1 / gap_s)) >= 0:
            decider.ledger.finished(found[late].id, now_s, output_tokens=50 + 7 * late % 100)
        found.append(decider.decide(RouteRequest(prompt_tokens=50 + 7 * i % 100), now_s, [True] * n))
        decider.ledger.streamed(found[i // 2].id, 3, now_s + gap_s / 2)
    return found
