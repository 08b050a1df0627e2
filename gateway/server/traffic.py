"""What all requests share: the gateway in charge, connections to engines, metrics, and who is under way."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from gateway.log.writer import LogWriter
from gateway.request import RouteRequest
from gateway.server.exchange import Exchange
from gateway.server.logged import request_line
from gateway.server.metrics import Metrics
from gateway.server.pages import page_of_all
from gateway.server.replies import Receive, Refused
from gateway.server.state import Gateway
from gateway.server.upstream import Sessions
from gateway.server.watch import Watch
from rllib_envs.scenario import Scenario

_RECENT = 50  # requests
_LOGGED_CHARACTERS = 2**14  # of a prompt

_MOST_ANSWERED = 10_000  # answers that can still be judged


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that was given."""

    tenant: str
    expert: str
    scenario: Scenario  # the cluster that it is logged with


class Traffic:
    """Requests under way. ``gateway`` is the one in charge; a reload puts another in its place, and requests keep theirs."""

    def __init__(self, gateway: Gateway, sessions: Sessions) -> None:
        self.gateway, self.sessions = gateway, sessions
        self.log = open_log(gateway)
        self.metrics = Metrics(lambda: self.gateway, self.log)
        self.draining = False
        self.watches: set[Watch] = set()  # of the requests that an expert is asked for
        self.at_end: list[Callable[[], None]] = []  # what else is to be done then
        self.recent: deque[tuple[Gateway, Exchange]] = deque(maxlen=_RECENT)  # for the live page; without their prompts
        self.answered: dict[str, Answered] = {}  # by id of the request, the last ones
        self._places: Counter[str | None] = Counter()  # taken, by tenant

    @contextmanager
    def place(self, gateway: Gateway, tenant: int | None) -> Generator[None]:
        """A place among the requests under way.

        Raises:
            Refused: 429, there is none; 503, the gateway is about to end.
        """
        entry = None if tenant is None else gateway.config.tenants[tenant]
        name = None if entry is None else entry.name
        if self._places.total() >= gateway.config.limits.concurrent:
            raise Refused(429, "overloaded", "the gateway has as many requests as it takes", retry_after_s=1)
        if entry is not None and entry.max_concurrent is not None and self._places[name] >= entry.max_concurrent:
            raise Refused(429, "rate_limited", f"{name} has {entry.max_concurrent} requests under way", retry_after_s=1)
        self._places[name] += 1
        try:
            yield
        finally:
            self._places[name] -= 1

    async def close(self) -> None:
        """End what is under way elsewhere, write the rest of the log, and close the connections to the experts."""
        for action in self.at_end:
            action()
        self.gateway.aside.close()
        if self.log is not None:
            await asyncio.to_thread(self.log.close)
        await self.sessions.close()

    def metrics_page(self) -> bytes:
        """What a scrape gets: the metrics, of all workers if there are several."""
        place = self.gateway.place
        return self.metrics.text() if place is None else page_of_all(place)

    def name_of(self, tenant: int | None) -> str:
        """The name of a tenant of the configuration in charge; "" of nobody."""
        return "" if tenant is None else self.gateway.config.tenants[tenant].name

    @contextmanager
    def watched(self, receive: Receive) -> Generator[Watch]:
        """A watch for the request of the running task."""
        watch = Watch(receive)
        self.watches.add(watch)
        try:
            yield watch
        finally:
            watch.close()
            self.watches.discard(watch)

    async def decide(self, gateway: Gateway, request: RouteRequest, arrived_s: float, request_id: str | None = None) -> Exchange:
        """Decide where a request goes, and count it. A request that goes nowhere is recorded at once.

        Predictors that are slow are heard first, for a while; the cluster is looked at after that.

        Args:
            gateway: in charge of the request.
            request: to route.
            arrived_s: when it came.
            request_id: its id; None: that of the decision.

        Raises:
            ValueError: the request does not fit the scenario (``Decider.decide``).
        """
        heard = await gateway.aside.of(request)
        if heard.missed is not None:
            self.metrics.unpredicted(heard.missed)
        decision = gateway.decider.decide(request, time.monotonic(), gateway.ready(), heard.told)
        self.metrics.decided(decision, None if decision.expert is None else gateway.upstreams[decision.expert].entry.name)
        exchange = Exchange(
            request_id=decision.id if request_id is None else request_id,
            arrived_s=arrived_s,
            class_name=gateway.class_names[request.service],
            bounds=gateway.bounds(request.budgets, request.service),
            request=request,
            decision=decision,
            expert=-1 if decision.expert is None else decision.expert,
            load=() if self.log is None else tuple(gateway.decider.ledger.loads()),
        )
        if decision.expert is None:
            self.record(gateway, exchange)
        return exchange

    def ended(self, gateway: Gateway, exchange: Exchange) -> None:
        """A completion ended, however it did."""
        name = gateway.upstreams[exchange.expert].entry.name
        self.metrics.ended(exchange, name)
        if exchange.outcome == "finished":
            self.answered.pop(exchange.request_id, None)  # to be the newest
            self.answered[exchange.request_id] = Answered(exchange.request.tenant, name, gateway.scenario)
            if len(self.answered) > _MOST_ANSWERED:
                del self.answered[next(iter(self.answered))]
        self.record(gateway, exchange)

    def record(self, gateway: Gateway, exchange: Exchange) -> None:
        """Enter an exchange that changes no more: for the live page, and in the log, if there is one."""
        text, exchange.request = exchange.request.text, replace(exchange.request, text="")
        self.recent.append((gateway, exchange))
        if self.log is not None and gateway.config.log is not None:
            clock_s = time.time() - time.monotonic()
            prompt = text[:_LOGGED_CHARACTERS] if gateway.config.log.prompts else None  # what waits is never long
            self.log.write(gateway.scenario, lambda: request_line(exchange, clock_s, prompt))


def open_log(gateway: Gateway) -> LogWriter | None:
    """The decision log that the configuration asks for.

    Raises:
        InputError: its folder cannot be written to.
    """
    entry = gateway.config.log
    if entry is None:
        return None
    folder = gateway.loaded.path(entry.folder)
    return LogWriter(folder, entry.file_bytes, entry.files, entry.waiting, gateway.scenario)
