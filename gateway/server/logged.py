"""What the decision log is told of an exchange."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from gateway.server.exchange import Exchange
from rllib_envs.decision_log.records import line_of


def request_line(exchange: Exchange, clock_s: float, prompt: str | None) -> bytes:
    """The line of a request that has ended, or that went nowhere.

    Args:
        exchange: the request.
        clock_s: time since 1970 when the monotonic clock was 0.
        prompt: its text, if that is written too.
    """
    request, decision = exchange.request, exchange.decision
    sent = () if decision.expert is None else (decision.expert,)
    n = len(decision.predicted_ttft_s)
    shadow = decision.shadow
    data: dict[str, Any] = {
        "kind": "request",
        "id": exchange.request_id,
        "time": clock_s + exchange.arrived_s,
        "tenant": request.tenant,
        "service": exchange.class_name,
        "prompt_tokens": [request.prompt_at(e) for e in range(n)],
        "max_tokens": request.max_tokens,
        "streams": request.streams,
        "pinned": request.pinned is not None,
        "bounds": asdict(exchange.bounds),
        "candidates": sorted((*sent, *decision.ranking)),
        "policy": decision.policy[:1000],
        "version": decision.version[:1000],
        "fallback": decision.fallback,
        "refusal": decision.reason,
        "expert": decision.expert,
        "predicted_score": _known(decision.predicted_score),
        "predicted_tokens": _known(decision.predicted_tokens),
        "predicted_ttft_s": _known(decision.predicted_ttft_s),
        "predicted_tpot_s": _known(decision.predicted_tpot_s),
        "scores": _known(decision.scores),
        "probability": min(decision.probability, 1.0) if decision.probability >= 0 else None,
        "decision_s": decision.decision_s,
        "reasons": decision.reasons[:1000],
        "load": [tuple(entry) for entry in exchange.load],
        "shadow": None
        if shadow is None
        else {
            "policy": shadow.policy[:1000],
            "version": shadow.version[:1000],
            "expert": shadow.expert,
            "scores": _known(shadow.scores),
        },
        "outcome": None if decision.expert is None else _outcome(exchange),
        "text": prompt,
    }
    return line_of(data)


def _outcome(exchange: Exchange) -> dict[str, Any]:
    seen = exchange.tokens if exchange.output_tokens is None else exchange.output_tokens
    return {
        "status": exchange.outcome,
        "expert": exchange.expert,
        "attempts": exchange.attempts,
        "ttft_s": exchange.ttft_s,
        "tpot_s": exchange.tpot_s,
        "e2e_s": None if exchange.ended_s is None else exchange.ended_s - exchange.arrived_s,
        "prompt_tokens": exchange.prompt_tokens,
        "output_tokens": seen,
        "violates": exchange.outcome == "finished" and exchange.violates,
    }


def _known(values: Iterable[float]) -> list[float | None]:
    """Six digits of each; what is not finite is not known."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]
