"""The network between users and experts: sites, links between them, and devices that move."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from rllib_envs.limits import CONFIG, LogDeviation, Name, NonNegative, Positive


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Site:
    """A place where users are."""

    name: Name
    share: NonNegative = 1.0  # of the devices, in proportion to those of the other sites


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Link:
    """The way from the users of a site to the experts of a site, and back."""

    users: Name  # site of the users
    experts: Name  # site of the experts
    rtt_s: NonNegative  # mean round trip
    mbit_per_s: Positive | None = None  # rate at which prompts travel; None: their size takes no time


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Network:
    """Sites of users, and a link from each of them to each site of experts."""

    sites: Annotated[tuple[Site, ...], Field(min_length=1, max_length=100)]
    links: Annotated[tuple[Link, ...], Field(max_length=10_000)]
    jitter_log_sd: LogDeviation = 0.0  # standard deviation of the log of a round trip; the mean stays
    devices: Annotated[int, Field(ge=1, le=10**6)] = 1000  # that requests come from, each equally likely
    stay_s: Positive | None = None  # mean time that a device stays before it goes to a site, drawn by share; None: for ever

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [site.name for site in self.sites]
        pairs = [(link.users, link.experts) for link in self.links]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"sites: name {name!r} is used more than once")
        for pair in pairs:
            if pairs.count(pair) > 1:
                raise ValueError(f"links: more than one from users at {pair[0]!r} to experts at {pair[1]!r}")
            if pair[0] not in names:
                raise ValueError(f"links: users = {pair[0]!r}: no such site; there are {', '.join(names)}")
        if not sum(site.share for site in self.sites):
            raise ValueError("sites: share is 0 in all of them: at least one must be above 0")
        return self
