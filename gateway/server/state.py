"""What one configuration comes to: decider, engines, keys and privacy sets. A reload makes another."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from weakref import WeakSet

from gateway.config import LoadedConfig
from gateway.decider import Decider
from gateway.request import Budgets
from gateway.server.aside import Aside
from gateway.server.exchange import promised
from gateway.server.keys import Keys
from gateway.server.tokens import TokenCounter
from gateway.server.upstream import Upstream
from models.predictors.served import Predictors
from rllib_envs.sim.seen import clear_seen

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """Which of several processes in front of the same experts this is.

    Each has two ledgers in the shared file, of which it uses one. A reload moves what is under way to the other.
    """

    ledgers: Path  # the shared file
    number: int
    workers: int
    restarts: int = 0  # how often this one was started again
    ledger: int = 0  # 0 or 1

    @property
    def shared_by(self) -> int:
        """Ledgers in the file."""
        return 2 * self.workers

    @property
    def row(self) -> int:
        """Of the ledger in use, in the file."""
        return 2 * self.number + self.ledger


class Gateway:
    """The cluster behind the gateway, as one configuration describes it."""

    def __init__(self, loaded: LoadedConfig, place: WorkerPlace | None = None) -> None:
        """Load policy and tokenizers and warm up, which takes seconds.

        Args:
            loaded: the configuration.
            place: among several workers; None: this process is alone.

        Raises:
            InputError: what the configuration names cannot be loaded.
        """
        self.loaded, self.config, self.scenario = loaded, loaded.config, loaded.scenario
        self.place = place
        config = self.config
        self.decider = Decider(
            loaded.scenario,
            loaded.policy(config.policy),
            fallback=loaded.policy(config.fallback),
            shadow=None if config.shadow is None else loaded.policy(config.shadow),
            predictors=None if config.predictors is None else Predictors.load(loaded.path(config.predictors)),
            may_drop=[entry.may_drop for entry in config.classes] or [config.may_drop],
            capacity=config.limits.concurrent,
            seed=0 if place is None else place.number,
            shared=None if place is None else place.ledgers,
            gateway=0 if place is None else place.row,
            gateways=1 if place is None else place.shared_by,
        )
        self.decider.warm_up()
        self.aside = Aside(self.decider.predicting)
        self._ancestors: WeakSet[Gateway] = WeakSet()  # of former configurations, which requests under way still have
        self.keys = Keys(self.config.tenants)
        self.upstreams = self._upstreams()
        self.privacy_sets = [self._members(entry.confined_to) for entry in self.config.privacy_sets]
        self.class_names = [entry.name for entry in self.config.classes] or ["default"]

    def next_place(self) -> WorkerPlace | None:
        """Where the gateway of the next configuration keeps its ledger."""
        return None if self.place is None else replace(self.place, ledger=1 - self.place.ledger)

    def take_over(self, old: Gateway) -> None:
        """Keep what ``old`` knows of engines that are the same, and what is under way there if all are.

        Requests under way keep the gateway that they have; its decider becomes this one's.
        """
        known = {(x.entry, x.model): x for x in old.upstreams} if old.config.breaker == self.config.breaker else {}
        self.upstreams = [known.get((x.entry, x.model), x).with_token_of(x) for x in self.upstreams]
        before = old.decider.ledger
        try:
            self.decider.take_over(old.decider, time.monotonic())
        except ValueError as error:
            _LOG.warning("requests under way do not count in the new accounts: %s", error)
            return
        if self.place is not None:  # else the others would count them twice
            clear_seen(before.seen, before.me)
        for ancestor in (old, *old._ancestors):
            ancestor.decider = self.decider
            self._ancestors.add(ancestor)

    def ready(self) -> list[bool]:
        """(N,) experts that a request may be sent to now."""
        now_s = time.monotonic()
        return [upstream.ready(now_s) for upstream in self.upstreams]

    def bounds(self, own: Budgets, service: int) -> Budgets:
        """What a request of a service class is promised, with bounds of its own."""
        classes = self.scenario.classes
        return promised(own, classes[service] if classes else None, self.scenario.slo_s_per_token)

    def _upstreams(self) -> list[Upstream]:
        files: dict[Path, TokenCounter] = {}
        made: list[Upstream] = []
        for entry, model, token in zip(self.config.experts, self.loaded.models, self.loaded.tokens, strict=True):
            file = None if entry.tokenizer is None else self.loaded.path(entry.tokenizer)
            if file is None:  # each expert learns its own ratio of characters to tokens
                counter = TokenCounter(None)
            elif file in files:
                counter = files[file]
            else:
                counter = files[file] = TokenCounter(file)
            made.append(Upstream(entry, model, token, counter, self.config.breaker))
        return made

    def _members(self, places: Sequence[str]) -> tuple[bool, ...]:
        return tuple(bool({x.name, x.site, *x.labels} & set(places)) for x in self.scenario.experts)
