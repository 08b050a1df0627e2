"""Requests that the gateway decides about and somebody else sends: ``POST /v1/route``, and what becomes of them."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from gateway.request import Budgets, RouteRequest
from gateway.server.asked import (
    Inquiry,
    allowed_of,
    budgets_of,
    class_of,
    count_of,
    parse_inquiry,
    parse_object,
    pinned_of,
    wrong,
)
from gateway.server.exchange import Exchange, Outcome
from gateway.server.replies import Refused
from gateway.server.state import Gateway
from gateway.server.traffic import Traffic

EVENTS: dict[str, Outcome | None] = {"first_token": None, "finished": "finished", "failed": "broken", "cancelled": "client_gone"}
"""What can be told of a request: how it ended; first_token: it began."""


@dataclass(slots=True)
class _Open:
    """A request under way elsewhere."""

    gateway: Gateway
    exchange: Exchange
    places: ExitStack  # what it takes of the limits
    timer: asyncio.TimerHandle


class Routes:
    """Requests under way elsewhere. Each has a place among the gateway's, and ends by itself where nobody tells its end."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._open: dict[str, _Open] = {}

    def __len__(self) -> int:
        """Requests under way."""
        return len(self._open)

    async def ask(self, headers: dict[bytes, bytes], body: bytes, tenant: int | None) -> dict[str, Any]:
        """Answer ``POST /v1/route``: the expert, why, and the id for ``tell``.

        Raises:
            Refused: 400, 404, a wrong field or name; 429, too many under way.
        """
        return await self.decide(headers, parse_inquiry(body), tenant, told=True)

    async def decide(self, headers: dict[bytes, bytes], inquiry: Inquiry, tenant: int | None, *, told: bool) -> dict[str, Any]:
        """Decide, and keep account of the request.

        Args:
            headers: of the question, which may name class and privacy set.
            inquiry: the question.
            tenant: who asks.
            told: whether its end will be told; else it is taken to end when it is predicted to.

        Raises:
            Refused: as ``ask``.
        """
        traffic, gateway = self._traffic, self._traffic.gateway
        with ExitStack() as stack:
            stack.enter_context(traffic.place(gateway, tenant))
            arrived_s = time.monotonic()
            request = await _route_request(gateway, inquiry, headers, tenant)
            exchange = await traffic.decide(gateway, request, arrived_s)
            decision = exchange.decision
            if decision.expert is not None:
                stack.enter_context(gateway.upstreams[decision.expert].taken())
                wait_s = gateway.config.timeouts.routed_s if told else _predicted_s(gateway, exchange)
                timer = asyncio.get_running_loop().call_later(wait_s, self._end, decision.id, "presumed")
                self._open[decision.id] = _Open(gateway, exchange, stack.pop_all(), timer)
        return _described(gateway, exchange)

    async def tell(self, headers: dict[bytes, bytes], body: bytes, tenant: int | None) -> dict[str, Any]:
        """Answer ``POST /v1/route/events``: something happened to a request.

        Raises:
            Refused: 400, a wrong field; 404, no such request under way.
        """
        data = parse_object(body)
        event = data.get("event")
        if not isinstance(event, str) or event not in EVENTS:
            raise wrong("event", f"must be one of {', '.join(EVENTS)}")
        prompt_tokens, output_tokens = count_of(data, "prompt_tokens"), count_of(data, "output_tokens")
        key = data.get("id")
        entry = self._open.get(key) if isinstance(key, str) else None
        if entry is None or entry.exchange.request.tenant != self._traffic.name_of(tenant):
            raise Refused(404, "not_found", "id: no such request is under way", param="id")
        outcome = EVENTS[event]
        if outcome is None:
            self._began(entry)
        else:
            entry.exchange.prompt_tokens, entry.exchange.output_tokens = prompt_tokens, output_tokens
            self._end(entry.exchange.request_id, outcome)
        return {"id": entry.exchange.request_id, "event": event}

    def close(self) -> None:
        """All end, as the gateway does."""
        for key in tuple(self._open):
            self._end(key, "shutdown")

    def _began(self, entry: _Open) -> None:
        exchange, now_s = entry.exchange, time.monotonic()
        if exchange.first_s is None:
            exchange.first_s, exchange.tokens = now_s, 1
            entry.gateway.upstreams[exchange.expert].breaker.succeeded()
            exchange.request = replace(exchange.request, streams=True)  # for the times, which are known now
            entry.gateway.decider.ledger.streamed(exchange.request_id, 1, now_s)

    def _end(self, key: str, outcome: Outcome) -> None:
        entry = self._open.pop(key)
        entry.timer.cancel()
        exchange, ledger = entry.exchange, entry.gateway.decider.ledger
        exchange.outcome, exchange.ended_s = outcome, time.monotonic()
        breaker = entry.gateway.upstreams[exchange.expert].breaker
        if outcome == "finished":
            breaker.succeeded()
            ledger.finished(key, exchange.ended_s, exchange.prompt_tokens, exchange.output_tokens)
        else:
            if outcome == "broken":
                breaker.failed(exchange.ended_s)
            ledger.cancelled(key, exchange.ended_s)
        entry.places.close()
        self._traffic.ended(entry.gateway, exchange)


async def _route_request(gateway: Gateway, inquiry: Inquiry, headers: dict[bytes, bytes], tenant: int | None) -> RouteRequest:
    config = gateway.config
    allowed = allowed_of(headers, config, gateway.privacy_sets)
    if inquiry.candidates is not None:
        asked = set(inquiry.candidates)
        among = tuple(bool({upstream.entry.name, upstream.model} & asked) for upstream in gateway.upstreams)
        if not any(among):
            names = ", ".join(upstream.entry.name for upstream in gateway.upstreams)
            raise wrong("candidates", f"{inquiry.candidates[0][:80]!r}: at least one must be of {names}, or the model of one")
        allowed = among if allowed is None else tuple(a and b for a, b in zip(allowed, among, strict=True))
    own, by_header = inquiry.budgets, budgets_of(headers)
    return RouteRequest(
        prompt_tokens=tuple([await upstream.counter.count(inquiry.prompt) for upstream in gateway.upstreams]),
        max_tokens=inquiry.max_tokens,
        text=inquiry.prompt.text,
        service=class_of(headers, config, tenant),
        tenant="" if tenant is None else config.tenants[tenant].name,
        allowed=allowed,
        pinned=pinned_of(inquiry.model, config),
        budgets=Budgets(
            ttft_s=own.ttft_s or by_header.ttft_s, tpot_s=own.tpot_s or by_header.tpot_s, e2e_s=own.e2e_s or by_header.e2e_s
        ),
        streams=False,
    )


def _predicted_s(gateway: Gateway, exchange: Exchange) -> float:
    """When the request is predicted to end; of an expert whose times are not predicted, after the profile's mean answer."""
    decision, e = exchange.decision, exchange.expert
    ttft_s, tpot_s = decision.predicted_ttft_s[e], decision.predicted_tpot_s[e]
    expert = gateway.scenario.experts[e]
    tokens = decision.predicted_tokens[e] if decision.predicted_tokens else expert.mean_output_tokens
    if not math.isfinite(ttft_s + tpot_s):
        ttft_s, tpot_s = 0.0, expert.engine.iteration_s(1, exchange.request.prompt_at(e))
    return min(ttft_s + tpot_s * tokens, gateway.config.timeouts.routed_s)


def _described(gateway: Gateway, exchange: Exchange) -> dict[str, Any]:
    decision, names = exchange.decision, [entry.name for entry in gateway.config.experts]
    chosen = None if decision.expert is None else gateway.upstreams[decision.expert]
    predicted = {
        "ttft_ms": [1e3 * x for x in decision.predicted_ttft_s],
        "tpot_ms": [1e3 * x for x in decision.predicted_tpot_s],
        "score": decision.predicted_score,
        "tokens": decision.predicted_tokens,
    }
    return {
        "id": decision.id,
        "expert": None if chosen is None else chosen.entry.name,
        "model": None if chosen is None else chosen.model,
        "refused": decision.reason,
        "ranking": [names[e] for e in (() if decision.expert is None else (decision.expert, *decision.ranking))],
        "scores": {name: known(x) for name, x in zip((*names, "drop"), decision.scores, strict=False)},
        "predicted": {
            name: {what: known(values[e]) for what, values in predicted.items() if values} for e, name in enumerate(names)
        },
        "policy": decision.policy,
        "version": decision.version,
        "fallback": decision.fallback,
        "probability": known(decision.probability),
        "reasons": decision.reasons,
    }


def known(value: float) -> float | None:
    """A number for JSON; None where it is not known."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
