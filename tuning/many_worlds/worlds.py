"""The worlds of the measurement: each fleet under each load, arrival process and level of information, in a balanced order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest

import numpy as np

from rllib_envs.scenario import LOAD_FRACTIONS, Arrivals, Predictions, Scenario, with_workload
from rllib_envs.scenarios.kinds import KINDS, PLAIN_KIND, of_kind
from rllib_envs.scenarios.procedural import INFORMATION
from tuning.evaluation.matrix import EVALUATION_SEEDS, TUNING_SEEDS
from tuning.many_worlds.fleets import FIRST_SEED, FIXED_KIND, Fleet, fleets

LOADS = {**LOAD_FRACTIONS, "150 %": 1.5}
"""Mean rate over the capacity."""

ARRIVALS = ("poisson", "bursty", "long overload")
TOLD: dict[str, Predictions] = {str(told.law): told for told in INFORMATION[:3]}
"""Levels of information: what predictions a router gets."""

_CONDITIONS = len(LOADS) * len(ARRIVALS) * len(TOLD)
_STREAM, _KIND_STREAM = 61, 62
_APART = 13  # fleets from where one kind begins to where the next does
_OFFSET = 5000  # of episodes: the seeds before it are those of other commands


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedWorld:
    """A fleet under one condition."""

    fleet: Fleet
    load: str
    arrivals: str
    told: str
    kind: str = PLAIN_KIND  # of ``rllib_envs.scenarios.kinds``

    @property
    def name(self) -> str:
        """All of it, for tables."""
        plain = f"{self.fleet.name}, {self.load}, {self.arrivals}, {self.told}"
        return plain if self.kind == PLAIN_KIND else f"{plain}, {self.kind}"

    def scenario(self, fleet: Scenario, requests: int) -> Scenario:
        """The fleet, with its capacity measured, under this condition; an episode has that many requests."""
        assert fleet.capacity_rps is not None
        rate_rps = LOADS[self.load] * fleet.capacity_rps
        changed = with_workload(fleet, arrivals=_arrivals(self.arrivals, requests / rate_rps), load=rate_rps, requests=requests)
        return of_kind(self.kind, replace(changed, predictions=TOLD[self.told]), (self.fleet.seed, _KIND_STREAM))

    def seeds(self, episodes: int) -> tuple[int, ...]:
        """Seeds of the episodes that routers are compared on."""
        return self._seeds(EVALUATION_SEEDS, episodes)

    def tuning_seeds(self, episodes: int) -> tuple[int, ...]:
        """Seeds of the episodes that parameters are chosen on."""
        return self._seeds(TUNING_SEEDS, episodes)

    def _seeds(self, among: range, episodes: int) -> tuple[int, ...]:
        condition = (list(LOADS).index(self.load), ARRIVALS.index(self.arrivals), list(TOLD).index(self.told))
        kind = () if self.kind == PLAIN_KIND else (list(KINDS).index(self.kind),)  # plain worlds keep the seeds that they had
        rng = np.random.default_rng([self.fleet.seed, _STREAM, *condition, *kind])
        first = among.start + _OFFSET
        return tuple(first + int(i) for i in rng.choice(among.stop - first, episodes, replace=False))


def worlds(first_seed: int = FIRST_SEED, count: int | None = None, kinds: Sequence[str] = (PLAIN_KIND,)) -> list[NamedWorld]:
    """The first ``count`` of all worlds.

    They come in rounds. In a round each fleet has its turn once, each with another condition, so that loads, arrivals and
    levels of information appear about equally often, among all fleets and among those of a law. Kinds take turns. The fixed
    fleets are as they are: their worlds are plain.

    Args:
        first_seed: the first of the fleets' seeds.
        count: how many; None for all.
        kinds: kinds of world, each once.
    """
    of_kinds = [
        [
            NamedWorld(fleet=fleet, load=load, arrivals=arrivals, told=told, kind=kind)
            for turn in range(_CONDITIONS)
            for fleet in _order(fleets(first_seed), kind)
            for load, arrivals, told in [_condition(fleet.phase, turn)]
        ]
        for kind in kinds
    ]
    in_turn = chain.from_iterable(zip_longest(*of_kinds))
    return [world for world in in_turn if world is not None][:count]


def _order(every: list[Fleet], kind: str) -> list[Fleet]:
    """The fleets of a kind in a round. Kinds begin at different ones, so that few worlds of several kinds have many fleets."""
    if kind == PLAIN_KIND:
        return every
    drawn = [fleet for fleet in every if fleet.kind != FIXED_KIND]
    first = list(KINDS).index(kind) * _APART % len(drawn)
    return drawn[first:] + drawn[:first]


def _condition(phase: int, turn: int) -> tuple[str, str, str]:
    """Load, arrivals and information of a fleet at its turn. All 36 turns differ; three or four in a row are balanced."""
    place = phase + turn
    told = place + phase // len(ARRIVALS) + turn // len(ARRIVALS) + turn // 12
    return list(LOADS)[place % len(LOADS)], ARRIVALS[place % len(ARRIVALS)], list(TOLD)[told % len(TOLD)]


def _arrivals(name: str, episode_s: float) -> Arrivals:
    """The arrival process, in an episode of about that length."""
    if name == "poisson":
        return Arrivals()
    if name == "bursty":
        return Arrivals(kind="gamma", cv=3.0)
    return Arrivals(kind="mmpp", burst_ratio=4.0, burst_share=0.25, cycle_s=episode_s / 2)
