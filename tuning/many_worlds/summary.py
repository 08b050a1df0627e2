"""What many worlds say about a router: differences by kind of world, and whether the bounds hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rllib_envs.scenarios.kinds import KINDS, PLAIN_KIND
from rllib_envs.scenarios.procedural import UNSEEN
from tuning.many_worlds.fleets import FIXED, FIXED_KIND, TRAINING_KIND
from tuning.many_worlds.measure import PLAIN, TUNED, UNTUNED, WorldResult
from tuning.many_worlds.worlds import ARRIVALS, LOADS, TOLD

DRAWN = "all drawn fleets"
CLOSE = -0.003
"""A difference that still counts as no loss."""

_SHARE_CLOSE, _WORST_UNTUNED, _LOW_TUNED = 0.95, -0.01, -0.005


@dataclass(frozen=True, slots=True, kw_only=True)
class KindRow:
    """Differences of QoS to one baseline over some of the worlds."""

    kind: str
    worlds: int
    mean: float
    error: float  # standard error of the mean; worlds of a fleet are not independent, so it counts fleets; NaN for one fleet
    noise: float  # error of one world's difference: root mean square of ``noise``; NaN for a single episode
    low: float  # 5th percentile
    close: float  # share of the worlds with ``CLOSE`` or more
    worst: float
    worst_world: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """One bound, and whether it holds."""

    text: str
    found: str
    held: bool


def difference(result: WorldResult, baseline: str) -> float:
    """Mean over the episodes of the router's QoS less that of a baseline, on the same requests."""
    return float(np.mean(np.subtract(result.router, result.baselines[baseline])))


def noise(result: WorldResult, baseline: str) -> float:
    """Standard error of ``difference`` that comes from the episodes; NaN for a single one."""
    differences = np.subtract(result.router, result.baselines[baseline])
    return float(differences.std(ddof=1) / math.sqrt(differences.size)) if differences.size > 1 else math.nan


def best_plain(result: WorldResult) -> str:
    """The plain heuristic with the best mean QoS in a world."""
    return max(PLAIN, key=lambda name: float(np.mean(result.baselines[name])))


def groups(results: Sequence[WorldResult]) -> dict[str, list[WorldResult]]:
    """The worlds by kind: all drawn ones, those of each law, load, arrivals, information and kind, each fixed fleet."""
    drawn = [r for r in results if r.world.fleet.kind != FIXED_KIND]
    kinds = [kind for kind in KINDS if any(r.world.kind == kind for r in drawn)]
    found = {
        DRAWN: drawn,
        "training law": [r for r in drawn if r.world.fleet.kind == TRAINING_KIND],
        "other laws": [r for r in drawn if r.world.fleet.kind != TRAINING_KIND],
        **{f"law: {law}": [r for r in drawn if r.world.fleet.kind == law] for law in UNSEEN},
        **{f"load: {load}": [r for r in drawn if r.world.load == load] for load in LOADS},
        **{f"arrivals: {arrivals}": [r for r in drawn if r.world.arrivals == arrivals] for arrivals in ARRIVALS},
        **{f"told: {told}": [r for r in drawn if r.world.told == told] for told in TOLD},
        **({f"kind: {kind}": [r for r in drawn if r.world.kind == kind] for kind in kinds} if kinds != [PLAIN_KIND] else {}),
        **{f"fixed: {name}": [r for r in results if r.world.fleet.name == name] for name in FIXED},
    }
    return {title: own for title, own in found.items() if own}


def summarise(kind: str, results: Sequence[WorldResult], baseline: str) -> KindRow:
    """The row of one kind of world, of which there is at least one."""
    differences = np.array([difference(result, baseline) for result in results])
    worst = int(differences.argmin())
    return KindRow(
        kind=kind,
        worlds=len(results),
        mean=float(differences.mean()),
        error=_error(differences, [result.world.fleet.name for result in results]),
        noise=math.sqrt(np.mean([noise(result, baseline) ** 2 for result in results])),
        low=float(np.quantile(differences, 0.05)),
        close=float((differences >= CLOSE).mean()),
        worst=float(differences[worst]),
        worst_world=results[worst].world.name,
    )


def _error(differences: np.ndarray, names: Sequence[str]) -> float:
    """Standard error of the mean, clustered by fleet (Cameron and Miller, 2015, "A practitioner's guide", section II)."""
    of_fleet = dict.fromkeys(names, 0.0)
    for name, rest in zip(names, differences - differences.mean(), strict=True):
        of_fleet[name] += rest
    n = len(of_fleet)
    return math.sqrt(sum(x * x for x in of_fleet.values()) * n / (n - 1)) / differences.size if n > 1 else math.nan


def beats_plain(results: Sequence[WorldResult]) -> dict[str, bool]:
    """By fleet, whether the router's mean QoS over its worlds is above that of each plain heuristic."""
    fleets = dict.fromkeys(result.world.fleet.name for result in results)
    found = dict[str, bool]()
    for fleet in fleets:
        own = [result for result in results if result.world.fleet.name == fleet]
        found[fleet] = all(np.mean([difference(result, name) for result in own]) > 0 for name in PLAIN)
    return found


def bounds(results: Sequence[WorldResult]) -> list[Bound]:
    """The bounds of a router for any cluster, each with what was found."""
    drawn = groups(results).get(DRAWN, [])
    found = list[Bound]()
    if drawn:
        untuned, tuned = summarise("", drawn, UNTUNED), summarise("", drawn, TUNED)
        found += [
            _bound("untuned: the mean difference is above 0", f"{untuned.mean:+.4f}", untuned.mean > 0),
            _bound(
                f"untuned: {CLOSE:g} or more in {100 * _SHARE_CLOSE:g} % of the worlds",
                f"{100 * untuned.close:.1f} %",
                untuned.close >= _SHARE_CLOSE,
            ),
            _bound(f"untuned: {_WORST_UNTUNED:g} or more in each", f"{untuned.worst:+.4f}", untuned.worst >= _WORST_UNTUNED),
            _bound("tuned: the mean difference is 0 or more", f"{tuned.mean:+.4f}", tuned.mean >= 0),
            _bound(f"tuned: the 5th percentile is {_LOW_TUNED:g} or more", f"{tuned.low:+.4f}", tuned.low >= _LOW_TUNED),
        ]
        better = beats_plain(drawn)
        told = f"{sum(better.values())} of {len(better)}"
        found.append(_bound("better than each plain heuristic in every fleet", told, all(better.values())))
    for kind, own in groups(results).items():
        if kind.startswith("fixed"):
            mean = summarise(kind, own, UNTUNED).mean
            found.append(_bound(f"untuned: {CLOSE:g} or more, {kind}", f"{mean:+.4f}", mean >= CLOSE))
    return found


def _bound(text: str, found: str, held: bool) -> Bound:
    return Bound(text=text, found=found, held=held)
