"""What all requests share: the gateway in charge, connections to engines, metrics, and who is under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager

from gateway.server.exchange import Exchange
from gateway.server.metrics import Metrics
from gateway.server.replies import Receive, Refused
from gateway.server.state import Gateway
from gateway.server.upstream import Sessions
from gateway.server.watch import Watch


class Traffic:
    """Requests under way. ``gateway`` is the one in charge; a reload puts another in its place, and requests keep theirs."""

    def __init__(self, gateway: Gateway, sessions: Sessions) -> None:
        self.gateway, self.sessions = gateway, sessions
        self.metrics = Metrics(lambda: self.gateway)
        self.draining = False
        self.watches: set[Watch] = set()  # of the requests that an expert is asked for
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

    def ended(self, gateway: Gateway, exchange: Exchange) -> None:
        """A completion ended, however it did."""
        self.metrics.ended(exchange, gateway.upstreams[exchange.expert].entry.name)
