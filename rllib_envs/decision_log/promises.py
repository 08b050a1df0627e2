"""Bounds of single requests of a log, as service classes: the simulator then holds each request to what it was promised.

A gateway lets a request bring bounds of its own, which its class does not have. The terms of a class are all that the simulator
needs of a promise, so each different promise becomes a class.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.decision_log.records import LoggedBounds, LoggedRequest
from rllib_envs.scenario import Scenario
from rllib_envs.service import ServiceClass

MOST_CLASSES = 100
"""Of a scenario."""

_NAMES = ("per_token_s", "ttft_s", "tpot_s", "e2e_s")
_LEAST_S, _MOST_S = 1e-6, 1e9  # of a bound of a scenario
_NAME_LENGTH = 120  # of the class's own part

_Bounds = tuple[float | None, ...]


class Promised(NamedTuple):
    """A log's requests, each in a class that promises what it was promised."""

    scenario: Scenario  # its classes are first, then one for each other promise
    service: NDArray[np.int32]  # (M,) index of each request's class
    rounded: int  # requests whose own bounds were too many to keep apart: they have those that are nearest


def with_promises(scenario: Scenario, requests: Sequence[LoggedRequest], service: NDArray[np.int32]) -> Promised:
    """Give each request the class that promises what it was promised.

    A scenario has at most ``MOST_CLASSES``. Of more promises the most frequent are kept. Any other becomes the nearest one of its
    class, by the ratios of its bounds.

    Args:
        scenario: the cluster. Where every request has the bounds of its class, it stays as it is.
        requests: M of the log.
        service: (M,) index of each request's class by name.
    """
    classes = scenario.classes or (ServiceClass(name="default", per_token_s=scenario.slo_s_per_token),)
    usual = [_of_class(entry, scenario.slo_s_per_token) for entry in classes]
    keys = [(int(c), _own(x.bounds)) for c, x in zip(service, requests, strict=True)]
    own = Counter(key for key in keys if not _same(key[1], usual[key[0]]))
    if not own:
        return Promised(scenario, service, 0)
    kept = [key for key, _ in own.most_common(max(MOST_CLASSES - len(classes), 0))]
    place = {key: len(classes) + i for i, key in enumerate(kept)}
    rounded = sum(count for key, count in own.items() if key not in place)
    for key in own:
        if key not in place:
            place[key] = _nearest(key, kept, len(classes))
    names = {entry.name for entry in classes}
    added = [_class(classes[c], bounds, names) for c, bounds in kept]
    found = np.array([place.get(key, key[0]) for key in keys], np.int32)
    return Promised(replace(scenario, classes=(*classes, *added)), found, rounded)


def _of_class(entry: ServiceClass, slo_s_per_token: float) -> _Bounds:
    given = tuple(getattr(entry, name) for name in _NAMES)
    return given if any(given) else (slo_s_per_token, None, None, None)


def _own(bounds: LoggedBounds) -> _Bounds:
    return tuple(None if (x := getattr(bounds, name)) is None else min(max(x, _LEAST_S), _MOST_S) for name in _NAMES)


def _same(one: _Bounds, other: _Bounds) -> bool:
    """Whether two promises are the same; one without any bound says nothing, so it is what its class says."""
    return one == other or not any(one)


def _nearest(key: tuple[int, _Bounds], kept: Sequence[tuple[int, _Bounds]], first: int) -> int:
    """The index of the kept promise nearest to one, of its class and with the same bounds set; else that of its class."""
    c, bounds = key
    shape = [x is None for x in bounds]
    alike = [i for i, (other, theirs) in enumerate(kept) if other == c and [x is None for x in theirs] == shape]
    if not alike:
        return c
    wanted = np.log([x for x in bounds if x is not None])
    there = np.log([[x for x in kept[i][1] if x is not None] for i in alike])
    return first + alike[int(np.abs(there - wanted).sum(axis=1).argmin())]


def _class(entry: ServiceClass, bounds: _Bounds, names: set[str]) -> ServiceClass:
    """A class like another, with other bounds; its name joins ``names``."""
    said = ", ".join(f"{name.removesuffix('_s')} {x:g} s" for name, x in zip(_NAMES, bounds, strict=True) if x is not None)
    name = f"{entry.name[:_NAME_LENGTH]}: {said}"
    while name in names:  # bounds that differ in digits that are not shown
        name += "'"
    names.add(name)
    return replace(entry, name=name, **dict(zip(_NAMES, bounds, strict=True)))
