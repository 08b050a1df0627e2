"""What changes in an episode, drawn from a scenario's ``dynamics``: times of each expert's changes, and patience of clients.

All times are fixed before the episode begins, but those that depend on the work done: heat, and the end of a drain.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rllib_envs.dynamics import Dynamics, Patience, Throttling, concerns
from rllib_envs.expert import Expert
from rllib_envs.scenario import Scenario
from rllib_envs.sim.living import DARK, DOWN, DRAIN, EVENT, KNOWN_DOWN, KNOWN_UP, LIT, SPEED, THERMAL, UP

DYNAMIC_STREAMS = ("neighbours", "failures", "blackouts", "patience")
"""Names of the streams of random numbers that ``draw_disturbances`` takes."""

_Event = tuple[float, float, int]  # as in EVENT


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbances:
    """What changes in an episode of M requests on N experts."""

    events: tuple[NDArray[np.void], ...]  # (N,) of EVENT, ascending in time
    losses: tuple[NDArray[np.float64], ...]  # (N,) of times at which the router learns of a failure
    thermal: NDArray[np.void]  # (N,) THERMAL
    first_token_s: NDArray[np.float64]  # (M,) patience until the first token
    total_s: NDArray[np.float64]  # (M,) patience until the end
    retries: int  # how often a request that a failure took is sent again
    hides: bool  # whether telemetry of an expert may stop


def draw_disturbances(
    scenario: Scenario, arrival_s: NDArray[np.float64], streams: Mapping[str, np.random.Generator]
) -> Disturbances | None:
    """Draw what changes in an episode with requests at ``arrival_s`` (M,), ascending; None where nothing can.

    Args:
        scenario: experts, and their dynamics.
        arrival_s: (M,) times of arrival; nothing but speed changes after the last.
        streams: a generator for each of DYNAMIC_STREAMS.
    """
    dynamics = scenario.dynamics
    if dynamics is None or dynamics == Dynamics(detection_s=dynamics.detection_s, retries=dynamics.retries):
        return None
    until_s = float(arrival_s[-1])
    events, losses = zip(*(_of_expert(dynamics, expert, until_s, streams) for expert in scenario.experts), strict=True)
    patience = dynamics.patience or Patience()
    # Drawn first, so that a limit on one does not change the other.
    normal, uniform = streams["patience"].standard_normal((2, arrival_s.size)), streams["patience"].random((2, arrival_s.size))
    means_s = (patience.first_token_s, patience.total_s)
    first_s, total_s = (_patience_s(patience, mean_s, normal[i], uniform[i]) for i, mean_s in enumerate(means_s))
    return Disturbances(
        events=events,
        losses=losses,
        thermal=np.array([_thermal(dynamics.throttling, expert) for expert in scenario.experts], dtype=THERMAL),
        first_token_s=first_s,
        total_s=total_s,
        retries=dynamics.most_attempts - 1,
        hides=dynamics.hides_experts,
    )


def _concerns(places: Collection[str], expert: Expert) -> bool:
    return concerns(places, {expert.name, expert.site, *expert.labels})


def _of_expert(
    dynamics: Dynamics, expert: Expert, until_s: float, streams: Mapping[str, np.random.Generator]
) -> tuple[NDArray[np.void], NDArray[np.float64]]:
    """The events of one expert, and when the router learns of its failures."""
    downs = _downs(dynamics, expert, until_s, streams["failures"])
    known_s = [min(down_s + dynamics.detection_s, up_s) for down_s, up_s in downs]
    events = [*_speeds(dynamics, expert, until_s, streams["neighbours"])]
    for (down_s, up_s), seen_s in zip(downs, known_s, strict=True):
        events += [(down_s, 0, DOWN), (seen_s, 0, KNOWN_DOWN), (up_s, 0, UP), (up_s + dynamics.detection_s, 0, KNOWN_UP)]
    for outage in dynamics.outages:
        if outage.planned and outage.at_s <= until_s and _concerns(outage.experts, expert):
            events.append((outage.at_s, outage.for_s, DRAIN))
    dark = dynamics.blackouts
    if dark is not None and _concerns(dark.experts, expert):
        for start_s, end_s in _spells(streams["blackouts"], until_s, dark.mean_gap_s, dark.mean_s):
            events += [(start_s, 0, DARK), (end_s, 0, LIT)]
    ordered = np.array(events, dtype=EVENT)
    return ordered[np.argsort(ordered["at_s"], kind="stable")], np.array(known_s, np.float64)


def _downs(dynamics: Dynamics, expert: Expert, until_s: float, rng: np.random.Generator) -> list[tuple[float, float]]:
    """(down, up) times of the expert in order: given ones, and drawn ones that do not meet them, begun by ``until_s``."""
    given = sorted(
        (outage.at_s, outage.at_s + outage.for_s)
        for outage in dynamics.outages
        if not outage.planned and outage.at_s <= until_s and _concerns(outage.experts, expert)
    )
    failures, rest_s = dynamics.failures, dynamics.detection_s
    if failures is None or not _concerns(failures.experts, expert):
        return given
    drawn = _spells(rng, until_s, failures.mtbf_s, failures.mttr_s, rest_s)
    free = [(down_s, up_s) for down_s, up_s in drawn if all(up_s + rest_s < a or b + rest_s < down_s for a, b in given)]
    return sorted(given + free)


def _spells(
    rng: np.random.Generator, until_s: float, mean_gap_s: float, mean_s: float, rest_s: float = 0.0
) -> list[tuple[float, float]]:
    """(start, end) of what lasts exponential times, after exponential gaps that begin ``rest_s`` after the last end."""
    spells: list[tuple[float, float]] = []
    start_s = rng.exponential(mean_gap_s)
    while start_s <= until_s:
        end_s = start_s + rng.exponential(mean_s)
        spells.append((start_s, end_s))
        start_s = end_s + rest_s + rng.exponential(mean_gap_s)
    return spells


def _speeds(dynamics: Dynamics, expert: Expert, until_s: float, rng: np.random.Generator) -> list[_Event]:
    """The expert's changes of speed, by power modes and its neighbour: their factors multiplied."""
    modes = sorted((mode.at_s, mode.factor) for mode in dynamics.power_modes if _concerns(mode.experts, expert))
    neighbour, spells = dynamics.neighbour, list[tuple[float, float]]()
    if neighbour is not None and _concerns(neighbour.experts, expert):
        spells = _spells(rng, until_s, neighbour.mean_off_s, neighbour.mean_on_s)
    on = 1.0 if neighbour is None else neighbour.factor
    changes = [(at_s, 0, factor) for at_s, factor in modes]
    changes += [change for start_s, end_s in spells for change in ((start_s, 1, on), (end_s, 1, 1.0))]
    factors, events = [1.0, 1.0], list[_Event]()
    for at_s, part, factor in sorted(changes, key=lambda change: change[0]):
        factors[part] = factor
        events.append((at_s, factors[0] * factors[1], SPEED))
    return events


def _thermal(throttling: Throttling | None, expert: Expert) -> tuple[float, float, float, float, float]:
    """The expert's THERMAL."""
    if throttling is None or not _concerns(throttling.experts, expert):
        return (math.inf, 0, 1, 0, 1)
    kept = math.exp(-throttling.every_s / throttling.time_constant_s)
    return (throttling.every_s, kept, throttling.slowest, throttling.from_heat, throttling.to_heat)


def _patience_s(
    patience: Patience, mean_s: float | None, normal: NDArray[np.float64], uniform: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(M,) patience of clients, from standard normal or uniform numbers; inf without a mean."""
    if mean_s is None:
        return np.full(normal.size, np.inf)
    if patience.law == "exponential":
        return -mean_s * np.log1p(-uniform)
    return mean_s * np.exp(patience.log_sd * normal - 0.5 * patience.log_sd**2)
