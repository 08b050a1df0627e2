"""Metrics for Prometheus, by the names that the field uses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from gateway.decision import RouteDecision
from gateway.log.writer import LogWriter
from gateway.server.exchange import Exchange

if TYPE_CHECKING:
    from gateway.server.state import Gateway

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"

_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TPOT_S = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0)
_DECISION_S = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2)
_E2E_S = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0)


class Metrics:
    """Counts what happens. What is asked for at the time of a scrape comes from the gateway that is in charge then."""

    def __init__(self, current: Callable[[], Gateway], log: LogWriter | None) -> None:
        """``current``: the gateway in charge. ``log``: of decisions."""
        disable_created_metrics()  # a series of time stamps beside each of numbers
        self._registry = own = CollectorRegistry()
        by_expert = ("expert",)
        self._ttft = Histogram("edgeroute_request_ttft_seconds", "Time to first token", by_expert, buckets=_TTFT_S, registry=own)
        self._tpot = Histogram(
            "edgeroute_request_tpot_seconds", "Time per output token after the first", by_expert, buckets=_TPOT_S, registry=own
        )
        self._e2e = Histogram(
            "edgeroute_request_e2e_seconds", "Time to the end of a finished answer", by_expert, buckets=_E2E_S, registry=own
        )
        self._predicted_ttft = Histogram(
            "edgeroute_predicted_ttft_seconds", "Predicted time to first token", by_expert, buckets=_TTFT_S, registry=own
        )
        self._predicted_tpot = Histogram(
            "edgeroute_predicted_tpot_seconds", "Predicted time per output token", by_expert, buckets=_TPOT_S, registry=own
        )
        self._decision = Histogram("edgeroute_decision_seconds", "Time that a decision took", buckets=_DECISION_S, registry=own)
        self._requests = Counter(
            "edgeroute_requests", "Completions by expert and how they ended", ("expert", "outcome"), registry=own
        )
        self._tokens = Counter("edgeroute_tokens", "Tokens of finished requests", ("expert", "kind"), registry=own)
        self._violations = Counter(
            "edgeroute_slo_violations", "Finished requests that broke a bound of theirs", ("class",), registry=own
        )
        self._fallback = Counter("edgeroute_fallback", "Decisions that the policy did not take", ("reason",), registry=own)
        self._unpredicted = Counter(
            "edgeroute_unpredicted", "Decisions that predictors were not heard for", ("reason",), registry=own
        )
        self._dropped = Counter("edgeroute_dropped", "Requests that went to no expert", ("reason",), registry=own)
        self._retries = Counter(
            "edgeroute_upstream_failures", "Attempts that brought no byte of an answer", ("expert", "code"), registry=own
        )
        self._shadow = Counter(
            "edgeroute_shadow", "Decisions that another policy took beside: whether the same", ("agrees",), registry=own
        )
        self._feedback = Summary("edgeroute_feedback_score", "Scores of answers, by those who read them", by_expert, registry=own)
        self._refused = Counter("edgeroute_refused", "Requests refused before a decision", ("code",), registry=own)
        self._reloads = Counter("edgeroute_reloads", "Reloads of the configuration", ("result",), registry=own)
        own.register(_Now(current, log))

    def decided(self, decision: RouteDecision, name: str | None) -> None:
        """A decision, and the name of its expert."""
        self._decision.observe(decision.decision_s)
        if decision.fallback is not None:
            self._fallback.labels(decision.fallback).inc()
        if decision.shadow is not None:
            self._shadow.labels("yes" if decision.shadow.expert == decision.expert else "no").inc()
        if decision.expert is None or name is None:
            self._dropped.labels(decision.reason or "unknown").inc()
            return
        for histogram, values in (
            (self._predicted_ttft, decision.predicted_ttft_s),
            (self._predicted_tpot, decision.predicted_tpot_s),
        ):
            value = values[decision.expert]
            if value == value:  # it is known
                histogram.labels(name).observe(value)

    def failed(self, name: str, code: str) -> None:
        """An attempt at an expert brought nothing."""
        self._retries.labels(name, code).inc()

    def unpredicted(self, reason: str) -> None:
        """A decision without predictors, which were late or broke."""
        self._unpredicted.labels(reason).inc()

    def judged(self, name: str, score: float) -> None:
        """Somebody said how good an answer of an expert was, from 0 to 1."""
        self._feedback.labels(name).observe(score)

    def refused(self, code: str) -> None:
        """A request was refused before a decision."""
        self._refused.labels(code).inc()

    def reloaded(self, result: str) -> None:
        """The configuration was read again."""
        self._reloads.labels(result).inc()

    def ended(self, exchange: Exchange, name: str) -> None:
        """A completion ended."""
        assert exchange.outcome is not None
        self._requests.labels(name, exchange.outcome).inc()
        if exchange.ttft_s is not None:
            self._ttft.labels(name).observe(exchange.ttft_s)
        if exchange.outcome != "finished" or exchange.ended_s is None:
            return
        self._e2e.labels(name).observe(exchange.ended_s - exchange.arrived_s)
        if exchange.tpot_s is not None:
            self._tpot.labels(name).observe(exchange.tpot_s)
        if exchange.violates:
            self._violations.labels(exchange.class_name).inc()
        output = exchange.tokens if exchange.output_tokens is None else exchange.output_tokens
        self._tokens.labels(name, "output").inc(output)
        self._tokens.labels(name, "prompt").inc(exchange.prompt_tokens or 0)

    def text(self) -> bytes:
        """What a scrape gets."""
        return generate_latest(self._registry)


class _Now:
    """Gauges of the present."""

    def __init__(self, current: Callable[[], Gateway], log: LogWriter | None) -> None:
        self._current, self._log = current, log

    def collect(self) -> Iterable[Any]:
        """One sample per expert and gauge."""
        gateway = self._current()
        now_s = time.monotonic()
        in_flight = GaugeMetricFamily("edgeroute_inflight", "Requests under way", labels=["expert"])
        ready = GaugeMetricFamily("edgeroute_expert_ready", "1: requests may be sent there", labels=["expert"])
        circuit = GaugeMetricFamily(
            "edgeroute_breaker_state", "0: closed, 1: one request is let through, 2: open", labels=["expert"]
        )
        for upstream in gateway.upstreams:
            labels = [upstream.entry.name]
            in_flight.add_metric(labels, upstream.in_flight)
            ready.add_metric(labels, float(upstream.ready(now_s)))
            circuit.add_metric(labels, upstream.breaker.state(now_s).value)
        yield from (in_flight, ready, circuit)
        if gateway.place is not None:
            yield CounterMetricFamily(
                "edgeroute_worker_restarts", "How often this worker died and was started again", value=gateway.place.restarts
            )
        if self._log is not None:
            written = CounterMetricFamily("edgeroute_log_lines", "Lines written to the decision log", value=self._log.written)
            lost = CounterMetricFamily("edgeroute_log_lost", "Lines that the decision log lost", labels=["reason"])
            for reason in ("full", "disk", "failed", "closed"):
                lost.add_metric([reason], self._log.lost[reason])
            yield from (written, lost)
