"""One completion: check, decide, ask experts one after the other until one begins to answer, and pass its answer on."""

from __future__ import annotations

import asyncio
import math
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator

import aiohttp

from gateway.decision import Refusal, RouteDecision
from gateway.request import RouteRequest
from gateway.server.asked import Asked, allowed_of, budgets_of, class_of, parse_completion, pinned_of
from gateway.server.events import Events, Usage, error_event, find_usage, was_cut
from gateway.server.exchange import Exchange, Outcome
from gateway.server.replies import Receive, Refused, Scope, Send, send_bytes, send_refusal
from gateway.server.state import Gateway
from gateway.server.traffic import Traffic
from gateway.server.upstream import Answer, UpstreamFailure
from gateway.server.watch import Why

ABORT = "edgeroute.abort"
"""Extension of the ASGI scope: a function that cuts the client's connection."""

_ID = re.compile(rb"[\w.:-]{1,128}")
_PASSED_ON = (b"traceparent", b"tracestate", b"baggage")  # of the client's headers, to the engine
_STREAM_HEADERS = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))
_LONGEST_WAIT_S = 60
_LAST_WORDS_S = 1.0  # for a client to take the event that ends a broken stream

_REFUSALS: dict[Refusal, tuple[int, str, str]] = {
    "dropped": (429, "dropped", "the cluster is too busy for this request now"),
    "full": (429, "overloaded", "the gateway has as many requests under way as it can keep account of"),
    "unavailable": (503, "unavailable", "no expert that this request may go to is ready"),
    "confined": (403, "confined", "this request may go to none of the experts that it could be answered by"),
    "too_long": (400, "context_length_exceeded", "the prompt is longer than any expert that it may go to can take"),
}
_BROKEN: dict[Why, tuple[Outcome, str, str]] = {
    "idle": ("idle", "expert_idle", "the expert stopped sending"),
    "shutdown": ("shutdown", "shutting_down", "the gateway is shutting down"),
}


async def complete(traffic: Traffic, scope: Scope, receive: Receive, send: Send, *, chat: bool) -> None:
    """Answer a completion request.

    Args:
        traffic: what requests share.
        scope: of ASGI.
        receive: of ASGI.
        send: of ASGI.
        chat: whether the body has messages, else a prompt.
    """
    headers: dict[bytes, bytes] = dict(scope["headers"])
    given = headers.get(b"x-request-id", b"")
    request_id = given if _ID.fullmatch(given) else secrets.token_hex(12).encode()
    gateway = traffic.gateway  # of this request to its end, whatever is reloaded meanwhile
    about = [(b"x-request-id", request_id)]
    try:
        tenant = gateway.keys.tenant(headers.get(b"authorization"))
        with traffic.place(gateway, tenant):
            body = await read_body(headers, receive, gateway.config.limits.body_bytes, gateway.config.timeouts.client_s)
            if body is None:
                return  # the client left
            arrived_s = time.monotonic()
            asked = parse_completion(body, chat)
            request, counted = await _route_request(gateway, asked, headers, tenant)
            exchange = await traffic.decide(gateway, request, arrived_s, request_id.decode())
            about += _about(exchange.decision)
            if exchange.decision.expert is None:
                raise _refusal(gateway, exchange.decision)
            completion = _Completion(traffic, gateway, asked, counted, exchange, scope, send, about)
            await completion.run(receive)
    except Refused as refused:
        traffic.metrics.refused(refused.code)
        await send_refusal(send, refused, about)


async def read_body(headers: dict[bytes, bytes], receive: Receive, most_bytes: int, timeout_s: float) -> bytes | None:
    """The body of a request; None if the client left.

    Raises:
        Refused: 413, it is too large; 408, it takes too long.
    """
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length) > most_bytes:
        raise Refused(413, "body_too_large", f"the body must have at most {most_bytes:,} bytes")
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for part in _parts(receive):
                if part is None:
                    return None
                size += len(part)
                if size > most_bytes:
                    raise Refused(413, "body_too_large", f"the body must have at most {most_bytes:,} bytes")
                parts.append(part)
    except TimeoutError:
        raise Refused(408, "body_timeout", f"the body must come within {timeout_s:g} s") from None
    return b"".join(parts)


async def _parts(receive: Receive) -> AsyncIterator[bytes | None]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            yield None
            return
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _route_request(
    gateway: Gateway, asked: Asked, headers: dict[bytes, bytes], tenant: int | None
) -> tuple[RouteRequest, tuple[int, ...]]:
    """The request as the decider takes it, and its prompt tokens at each expert."""
    config = gateway.config
    pinned = pinned_of(asked.model, config)
    counts = tuple([await upstream.counter.count(asked.prompt) for upstream in gateway.upstreams])
    request = RouteRequest(
        prompt_tokens=counts,
        max_tokens=asked.max_tokens,
        text=asked.prompt.text,
        service=class_of(headers, config, tenant),
        tenant="" if tenant is None else config.tenants[tenant].name,
        allowed=allowed_of(headers, config, gateway.privacy_sets),
        pinned=pinned,
        budgets=budgets_of(headers),
        streams=asked.streams,
    )
    return request, counts


def _about(decision: RouteDecision) -> list[tuple[bytes, bytes]]:
    """What the headers of an answer tell of the decision, but for the expert."""
    named = f"{decision.policy}@{decision.version}" if decision.version else decision.policy
    about = [
        ("x-edgeroute-policy", named),
        ("x-edgeroute-reasons", decision.reasons),
        ("x-edgeroute-decision-ms", f"{1e3 * decision.decision_s:.2f}"),
    ]
    if decision.fallback is not None:
        about.append(("x-edgeroute-fallback", decision.fallback))
    return [(name.encode(), _header_value(value)) for name, value in about]


def _header_value(text: str) -> bytes:
    return "".join(x if x.isprintable() else " " for x in text).encode("ascii", "replace")


def _refusal(gateway: Gateway, decision: RouteDecision) -> Refused:
    status, code, message = _REFUSALS[decision.reason or "unavailable"]
    waits_s = [x for x in decision.predicted_ttft_s if math.isfinite(x)] if decision.reason == "dropped" else []
    wait_s = min(waits_s, default=gateway.config.breaker.period_s if status == 503 else 1.0)
    return Refused(status, code, message, retry_after_s=_whole_seconds(wait_s) if status in (429, 503) else None)


def _whole_seconds(seconds: float) -> int:
    return min(max(1, math.ceil(seconds)), _LONGEST_WAIT_S)


class _Completion:
    """A request that has been decided."""

    def __init__(
        self,
        traffic: Traffic,
        gateway: Gateway,
        asked: Asked,
        counted: tuple[int, ...],
        exchange: Exchange,
        scope: Scope,
        send: Send,
        about: list[tuple[bytes, bytes]],
    ) -> None:
        self._traffic, self._gateway, self._asked, self._counted, self._exchange = traffic, gateway, asked, counted, exchange
        self._scope, self._send, self._about = scope, send, about
        self._key = exchange.decision.id
        self._headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in _PASSED_ON} | {
            "x-request-id": exchange.request_id
        }
        self._started = False  # whether the client has got the head of an answer
        self._answer: Answer | None = None
        self._at: int | None = None  # the expert that it counts as in flight at

    async def run(self, receive: Receive) -> None:
        """From the decision to the end of the answer.

        Raises:
            Refused: nothing was sent to the client yet, and no expert answers.
        """
        with self._traffic.watched(receive) as watch:
            self._watch = watch
            try:
                await self._pass_on(await self._first_answer())
            except asyncio.CancelledError:
                why = watch.taken()
                if why is None:
                    raise
                await self._ended_by(why)
            except aiohttp.ClientError:
                await self._break_off("broken", "expert_failed", "the expert failed in the middle of its answer")
            finally:
                self._close()

    async def _first_answer(self) -> Answer:
        """The answer of the first expert that begins one."""
        decision, config = self._exchange.decision, self._gateway.config
        budget_s = self._exchange.bounds.ttft_s or config.timeouts.ttft_budget_s
        failure: UpstreamFailure | None = None
        for expert in self._candidates(decision):
            now_s = time.monotonic()
            if failure is not None:
                if now_s > self._exchange.arrived_s + budget_s:
                    break
                if not self._gateway.upstreams[expert].ready(now_s):
                    continue
                self._exchange.attempts += 1
                self._gateway.decider.moved(self._key, expert, now_s, self._counted[expert])
            try:
                return await self._ask(expert)
            except UpstreamFailure as error:
                failure = error
                self._leave()
                self._traffic.metrics.failed(self._gateway.upstreams[expert].entry.name, error.code)
        assert failure is not None
        raise self._exhausted(failure)

    def _candidates(self, decision: RouteDecision) -> Iterator[int]:
        assert decision.expert is not None
        yield decision.expert
        yield from (expert for expert in decision.ranking if expert != decision.expert)

    async def _ask(self, expert: int) -> Answer:
        upstream, limits = self._gateway.upstreams[expert], self._gateway.config.limits
        self._exchange.expert = self._at = expert
        upstream.in_flight += 1
        self._watch.limit(*self._patience(expert))
        try:
            return await upstream.ask(
                self._traffic.sessions,
                self._scope["path"],
                self._asked.for_engine(upstream.model),
                self._headers,
                limits.answer_bytes,
            )
        except asyncio.CancelledError:
            if self._watch.why not in ("first_byte", "answer"):
                raise
            why = self._watch.taken()
            upstream.breaker.failed(time.monotonic())
            raise UpstreamFailure(why or "first_byte", "it took too long to answer") from None

    def _patience(self, expert: int) -> tuple[Why, float]:
        """What the expert is waited for, and how long."""
        timeouts = self._gateway.config.timeouts
        if not self._asked.streams:
            return "answer", timeouts.answer_s
        predicted_s = self._exchange.decision.predicted_ttft_s[expert]
        if not math.isfinite(predicted_s):
            return "first_byte", timeouts.first_byte_max_s
        patience_s = max(timeouts.first_byte_min_s, timeouts.first_byte_factor * predicted_s)
        return "first_byte", min(patience_s, timeouts.first_byte_max_s)

    def _exhausted(self, failure: UpstreamFailure) -> Refused:
        """What the client is told when nobody answers."""
        self._end("exhausted")
        tried = f"{self._exchange.attempts} tried, the last was {self._gateway.upstreams[self._exchange.expert].entry.name}"
        if failure.code in ("first_byte", "answer"):
            return Refused(504, "expert_timeout", f"no expert answered in time ({tried})")
        if failure.code in ("busy", "refused"):
            wait_s = _whole_seconds(self._gateway.config.breaker.period_s)
            return Refused(503, "unavailable", f"no expert answered: {failure} ({tried})", retry_after_s=wait_s)
        return Refused(502, "expert_failed", f"no expert answered: {failure} ({tried})")

    async def _pass_on(self, answer: Answer) -> None:
        self._answer = answer
        name = self._gateway.upstreams[self._exchange.expert].entry.name
        self._about += [(b"x-edgeroute-expert", name.encode()), (b"x-edgeroute-attempts", b"%d" % self._exchange.attempts)]
        kind = answer.response.headers.get("content-type", "application/json").encode("latin-1")
        if answer.streams:
            await self._pass_stream(answer, kind)
        else:
            await self._pass_whole(answer, kind)

    async def _pass_whole(self, answer: Answer, kind: bytes) -> None:
        if answer.status < 400:
            self._exchange.first_s = time.monotonic()
            self._finish(find_usage(answer.body), cut=was_cut(answer.body))
        else:
            self._end("passed_on")
        self._leave()
        self._started = True
        self._watch.limit("client_slow", self._gateway.config.timeouts.client_s)
        await send_bytes(self._send, answer.status, answer.body, kind, self._about)

    async def _pass_stream(self, answer: Answer, kind: bytes) -> None:
        """Pass events on as they come. A client that reads slowly stops the reading from the expert."""
        timeouts, watch, exchange = self._gateway.config.timeouts, self._watch, self._exchange
        read = answer.response.content.readany
        events = Events(hide_usage=not self._asked.wants_usage)
        self._started = True
        await self._send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [(b"content-type", kind), *_STREAM_HEADERS, *self._about],
            }
        )
        data = answer.body
        while data:
            passed, tokens = events.feed(data)
            if tokens:
                now_s = time.monotonic()
                exchange.tokens += tokens
                if exchange.first_s is None:
                    exchange.first_s = now_s
                self._gateway.decider.ledger.streamed(self._key, tokens, now_s)  # a reload may have put another there
            if passed:
                watch.limit("client_slow", timeouts.client_s)
                await self._send({"type": "http.response.body", "body": passed, "more_body": True})
            watch.limit("idle", timeouts.idle_s)
            data = await read()
        if not events.done:
            await self._break_off("broken", "expert_failed", "the expert ended its answer before it was complete")
            return
        self._finish(events.usage, cut=events.cut)
        self._leave()
        watch.limit("client_slow", timeouts.client_s)
        await self._send({"type": "http.response.body", "body": b""})

    async def _ended_by(self, why: Why) -> None:
        """The watch ended it."""
        if why in _BROKEN and self._started:
            await self._break_off(*_BROKEN[why])
        elif why in _BROKEN:
            outcome, code, message = _BROKEN[why]
            self._end(outcome)
            raise Refused(503, code, message, retry_after_s=1)
        else:
            self._end("client_slow" if why == "client_slow" else "client_gone", cancelled=True)
            self._abort()

    def _abort(self) -> None:
        """Cut the client's connection."""
        abort = self._scope.get("extensions", {}).get(ABORT)
        if abort is not None:
            abort()

    async def _break_off(self, outcome: Outcome, code: str, message: str) -> None:
        """End a stream with an event that says why."""
        if outcome in ("broken", "idle"):
            upstream = self._gateway.upstreams[self._exchange.expert]
            upstream.breaker.failed(time.monotonic())
            self._traffic.metrics.failed(upstream.entry.name, outcome)
        self._end(outcome)
        self._close()
        self._watch.close()
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._send({"type": "http.response.body", "body": error_event(message, code)})
        except TimeoutError:
            self._abort()

    def _finish(self, usage: Usage, *, cut: bool) -> None:
        exchange = self._exchange
        exchange.prompt_tokens, exchange.output_tokens = usage
        upstream = self._gateway.upstreams[exchange.expert]
        upstream.counter.learn(self._asked.prompt, self._counted[exchange.expert], usage.prompt_tokens)
        now_s = time.monotonic()
        self._gateway.decider.ledger.finished(self._key, now_s, usage.prompt_tokens, usage.output_tokens, cut=cut)
        self._end("finished")

    def _end(self, outcome: Outcome, *, cancelled: bool = False) -> None:
        """The exchange is over; what is left in the ledger goes."""
        if self._exchange.outcome is not None:
            return
        self._exchange.outcome = outcome
        self._exchange.ended_s = now_s = time.monotonic()
        ledger = self._gateway.decider.ledger
        (ledger.cancelled if cancelled else ledger.failed)(self._key, now_s)  # nothing where it finished
        self._traffic.ended(self._gateway, self._exchange)

    def _leave(self) -> None:
        if self._at is not None:
            self._gateway.upstreams[self._at].in_flight -= 1
            self._at = None

    def _close(self) -> None:
        """Whatever happened: no connection is left open, and nothing in the accounts."""
        self._end("broken")
        self._leave()
        if self._answer is not None:
            self._answer.response.close()  # nothing where the answer was read to its end
