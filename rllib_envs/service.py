"""Service classes and tenants: what requests are promised, what they count, and where they may go."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic.dataclasses import dataclass

from rllib_envs.limits import CONFIG, Name, NonNegative, Order, Positive


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class ServiceClass:
    """Requests with the same service level. All bounds that are given must hold; without any, the scenario's holds."""

    name: Name
    share: NonNegative = 1.0  # of the requests, in proportion to those of the other classes
    weight: Positive = 1.0  # QoS of an answer in time: weight times score
    per_token_s: Positive | None = None  # bound on (finish - arrival) / output tokens
    ttft_s: Positive | None = None  # bound on the time to first token
    tpot_s: Positive | None = None  # bound on the time per output token after the first
    e2e_s: Positive | None = None  # bound on the time from arrival to finish
    confined_to: tuple[Name, ...] = ()  # names, sites or labels of the experts that its requests may go to; () = all
    priority: Order = 0  # a lower number is served first, by engines whose scheduling is priority


@dataclass(frozen=True, slots=True, kw_only=True, config=CONFIG)
class Tenant:
    """Somebody whose requests are kept apart in tables, and perhaps within some experts."""

    name: Name
    share: NonNegative = 1.0  # of the requests, in proportion to those of the other tenants
    confined_to: tuple[Name, ...] = ()  # names, sites or labels of the experts that its requests may go to; () = all


def unknown_places(entry: ServiceClass | Tenant, known: Collection[str]) -> list[str]:
    """Names and labels that a class or tenant is confined to and no expert has."""
    return [place for place in entry.confined_to if place not in known]


def draw_service(entries: Sequence[ServiceClass | Tenant], count: int, rng: np.random.Generator) -> NDArray[np.int32]:
    """(count,) which class, or tenant, each request is of; 0 where there are none."""
    if not entries:
        return np.zeros(count, np.int32)
    share = np.array([entry.share for entry in entries])
    return rng.choice(len(entries), count, p=share / share.sum()).astype(np.int32)
