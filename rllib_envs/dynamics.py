"""What changes within an episode: speed of engines, experts that fail, clients that give up, telemetry that stops."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Set
from itertools import pairwise
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from rllib_envs.limits import CONFIG, AtLeastOne, Fraction, LogDeviation, Name, NonNegative, Positive, Share

Duration = Annotated[float, Field(ge=0.1, le=1e9)]
"""Seconds that something lasts in the mean: not so short that an episode is full of changes."""

_Places = tuple[Name, ...]  # names, sites or labels of experts; () = all


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Throttling:
    """Engines that slow down as they heat up, and recover as they cool (``rllib_envs.sim.living`` has the formula).

    The defaults reach ``slowest`` after 104 s of work without a pause.
    """

    slowest: AtLeastOne = 1.62  # iteration time over that of a cool engine
    time_constant_s: Duration = 45.0  # of heating and of cooling
    from_heat: Fraction = 0.5  # heat at which an engine begins to slow down; heat 1: after long work without a pause
    to_heat: Share = 0.9  # heat at which it is slowest
    every_s: Duration = 1.0  # how often its speed follows its heat
    experts: _Places = ()  # names, sites or labels of the experts that throttle; () = all

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        if self.to_heat <= self.from_heat:
            raise ValueError(f"to_heat = {self.to_heat} with from_heat = {self.from_heat}: must be above it")
        return self


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class PowerMode:
    """From a time on, until the next mode of the same expert, iterations take so many times as long."""

    at_s: NonNegative
    factor: Positive
    experts: _Places = ()


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Neighbour:
    """Somebody else's work on the same GPU: on and off for exponential times, at each expert by itself."""

    factor: Positive = 1.3  # iteration time while it is on
    mean_on_s: Duration = 20.0
    mean_off_s: Duration = 40.0
    experts: _Places = ()


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Failures:
    """Experts that fail without warning and return: exponential times, at each expert by itself."""

    mtbf_s: Duration = 120.0  # mean time from when an expert is known to be up to its next failure
    mttr_s: Duration = 20.0  # mean time until it is up again
    experts: _Places = ()


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Outage:
    """A given time without some experts.

    A planned one is a drain: no request is sent there any more, and those inside finish. Then the expert is down for ``for_s``.
    """

    at_s: NonNegative
    for_s: Duration
    planned: bool = False
    experts: _Places = ()


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Patience:
    """How long clients wait before they cancel: drawn for each request."""

    law: Literal["log-normal", "exponential"] = "log-normal"
    first_token_s: Positive | None = None  # mean patience until the first token; None: no limit
    total_s: Positive | None = None  # mean patience until the end; None: no limit
    log_sd: LogDeviation = 0.5  # log-normal: standard deviation of the log


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Blackouts:
    """Telemetry of single experts that stops and returns: exponential times, at each expert by itself."""

    mean_gap_s: Duration = 60.0  # from the end of one to the next
    mean_s: Duration = 10.0
    experts: _Places = ()


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Dynamics:
    """All that changes within an episode. Nothing does by default."""

    throttling: Throttling | None = None
    power_modes: Annotated[tuple[PowerMode, ...], Field(max_length=1000)] = ()
    neighbour: Neighbour | None = None
    failures: Failures | None = None
    outages: Annotated[tuple[Outage, ...], Field(max_length=1000)] = ()
    detection_s: NonNegative = 1.0  # until the router knows that an expert has failed, or is up again
    retries: Annotated[int, Field(ge=0, le=10)] = 1  # how often a request that a failure took is sent again
    patience: Patience | None = None
    blackouts: Blackouts | None = None

    @property
    def loses_requests(self) -> bool:
        """Whether experts may fail with requests inside."""
        return self.failures is not None or any(not outage.planned for outage in self.outages)

    @property
    def hides_experts(self) -> bool:
        """Whether telemetry of an expert may stop, as it does when it fails."""
        return self.loses_requests or self.blackouts is not None

    @property
    def most_attempts(self) -> int:
        """How often a request may be sent, at most."""
        return 1 + self.retries if self.loses_requests else 1

    @property
    def places(self) -> list[str]:
        """Names, sites and labels of experts that it speaks of."""
        parts = (self.throttling, self.neighbour, self.failures, self.blackouts, *self.power_modes, *self.outages)
        return [place for part in parts if part is not None for place in part.experts]


def concerns(places: Collection[str], expert: Set[str | None]) -> bool:
    """Whether an expert with these names, site and labels is among ``places``; () = all."""
    return not places or not expert.isdisjoint(places)


def check_dynamics(dynamics: Dynamics, experts: Mapping[str, Set[str | None]]) -> None:
    """Check what dynamics say of experts: their names -> name, site and labels of each.

    Raises:
        ValueError: a place that does not exist, or an outage of an expert that begins before it is known to be up again.
    """
    known = {place for places in experts.values() for place in places if place is not None}
    for place in dynamics.places:
        if place not in known:
            raise ValueError(
                f"dynamics: experts has {place!r}: no expert has this name or label; there are {', '.join(sorted(known))}"
            )
    outages = sorted(dynamics.outages, key=lambda outage: outage.at_s)
    for name, places in experts.items():
        own = [outage for outage in outages if concerns(outage.experts, places)]
        for one, other in pairwise(own):
            free_s = one.at_s + one.for_s + dynamics.detection_s
            if other.at_s <= free_s:
                raise ValueError(
                    f"dynamics.outages: {name!r} has one from {one.at_s} s and another with at_s = {other.at_s}: "
                    f"must be after {free_s}, when the router knows that it is up"
                )
