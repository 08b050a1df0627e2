"""How much better one could decide with the same information: roll-outs of sampled futures over impact-greedy, tuned per world.

    python -m benchmarks.headroom --cells 20 --out runs/headroom

Worlds are those of ``edgeroute generality``, in the same balanced order. See docs/headroom.md. A world that is done is kept in
the folder; the same command goes on with the others. ``--only-kept`` writes the report of those that are done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from rllib_envs.errors import InputError
from tuning.headroom.measure import HeadroomSize, measure
from tuning.headroom.report import write_report
from tuning.headroom.rollout import Search
from tuning.many_worlds.fleets import FIRST_SEED
from tuning.many_worlds.worlds import worlds
from tuning.run_dir.lock import run_lock
from tuning.specs.grammar import check_limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options."""

    cells: int = 20
    """Number of worlds."""
    episodes: int = 2
    """Episodes of a world."""
    requests: int = 400
    """Requests of an episode."""
    experts: int | None = None
    """Experts of each drawn fleet. Default: drawn."""
    tuning_episodes: int = 2
    """Episodes for each value in tuning."""
    tuning_requests: int = 1000
    """Requests of such an episode."""
    every: int = 1
    """Roll-outs decide at every so many decisions, impact-greedy at the others."""
    search: Search = field(default_factory=Search)
    """How actions are compared."""
    first_seed: int = FIRST_SEED
    """First seed of the fleets."""
    out: Path = Path("runs/headroom")
    """Folder for results."""
    jobs: int | None = None
    """Processes. Default: one for each core."""
    only_kept: bool = False
    """Measure nothing: report the worlds that are done."""


def check(options: Options) -> None:
    """Refuse options out of range.

    Raises:
        InputError: names the first.
    """
    limits = {
        "cells": (options.cells, 1, len(worlds(options.first_seed))),
        "episodes": (options.episodes, 1, 1000),
        "requests": (options.requests, 1, 10**6),
        "tuning_episodes": (options.tuning_episodes, 1, 1000),
        "tuning_requests": (options.tuning_requests, 1, 10**6),
        "every": (options.every, 1, 10**6),
        "search.actions": (options.search.actions, 2, 257),
        "search.copies": (options.search.copies, 2 * options.search.actions, 10**5),
        "search.batches": (options.search.batches, 1, 10**4),
        "search.horizon": (options.search.horizon, 1, 10**5),
        "search.gap": (options.search.gap, 0, 10),
        "search.errors": (options.search.errors, 0, 100),
        "first_seed": (options.first_seed, FIRST_SEED, 10**9),
        "jobs": (options.jobs, 1, 4096),
    }
    for name, (value, low, high) in limits.items():
        check_limits(name, value, low, high)


def main(options: Options) -> None:
    """Measure and report."""
    check(options)
    size = HeadroomSize(
        episodes=options.episodes,
        requests=options.requests,
        experts=options.experts,
        tuning_episodes=options.tuning_episodes,
        tuning_requests=options.tuning_requests,
        every=options.every,
    )
    chosen = worlds(options.first_seed, options.cells)
    with run_lock(options.out):
        results = measure(chosen, size, options.search, options.out, options.jobs, only_kept=options.only_kept)
        if not results:
            raise InputError(f"{options.out}: no world of this measurement is done yet")
        write_report(options.out, results)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except InputError as error:
        raise SystemExit(f"error: {error}") from None
