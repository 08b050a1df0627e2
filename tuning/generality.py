"""Measure a router in many worlds that training never drew.

The worlds are 60 drawn fleets and three fixed ones, each under several loads, arrival processes and levels of information. In
each world the router meets impact-greedy on the same requests, with default parameters and tuned for that world. Example:

    edgeroute generality --router bundle:runs/mine/bundle --cells 252 --out runs/generality
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rllib_envs.scenarios.kinds import PLAIN_KIND, check_kinds
from tuning.evaluation.trained_on import envelope_of_router
from tuning.many_worlds.fleets import FIRST_SEED
from tuning.many_worlds.measure import Size, measure
from tuning.many_worlds.report import write_report
from tuning.many_worlds.worlds import worlds
from tuning.run_dir.lock import run_lock
from tuning.specs.grammar import check_limits
from tuning.specs.routers import ANY_CLUSTER_ROUTER, parse_router

_SMOKE_EXPERTS, _SMOKE_CELLS, _SMOKE_REQUESTS = 3, 12, 200


HELP = {
    "measurement": ("router cells kinds", "episodes requests first_seed"),
    "results": ("out jobs smoke", ""),
}
"""Groups of the help (``tuning/specs/command_line.py``): title -> (basic options, advanced options)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    router: str | None = None
    """bundle:PATH, checkpoint:PATH, or a heuristic by name. Default: the router for any cluster that ships with the project."""
    cells: int | None = None
    """Number of worlds. A smaller number is part of every larger one and has as many of each kind. Default: all, for hours."""
    kinds: tuple[str, ...] = (PLAIN_KIND,)
    """Kinds of world, in turn: plain, classes, sites, private, or edge, which has all of them. Plain worlds stay the same."""
    episodes: int = 2
    """Episodes in a world. Tuning has as many of its own."""
    requests: int = 1000
    """Requests in an episode."""
    first_seed: int = FIRST_SEED
    """First seed of the fleets, 5000 or more. Each fleet has one of its own."""
    out: Path = Path("runs/generality")
    """Folder for the results: tables, worlds.csv, a figure, and what a restart needs."""
    jobs: int | None = None
    """Processes; results do not depend on it. Default: one for each core."""
    smoke: bool = False
    """A small run that takes a minute: fleets of three experts, 200 requests, a dozen worlds."""


def run(options: Options) -> None:
    """Measure, print the tables, and write the results.

    Raises:
        InputError: an option that names nothing or is out of range; a file that cannot be read or written; another run in the
            folder.
    """
    if options.smoke:
        cells = _SMOKE_CELLS if options.cells is None else options.cells
        options = replace(options, cells=cells, requests=_SMOKE_REQUESTS)
    every = worlds(options.first_seed, kinds=check_kinds(options.kinds))
    check_limits("cells", options.cells, 1, len(every))
    check_limits("episodes", options.episodes, 1, 1000)
    check_limits("requests", options.requests, 1, 10**6)
    check_limits("first_seed", options.first_seed, FIRST_SEED, 10**9)
    check_limits("jobs", options.jobs, 1, 4096)
    router = parse_router(options.router or f"bundle:{ANY_CLUSTER_ROUTER}")
    trained_on = envelope_of_router(router) if router.is_trained else None
    size = Size(episodes=options.episodes, requests=options.requests, experts=_SMOKE_EXPERTS if options.smoke else None)
    with run_lock(options.out):
        results = measure(every[: options.cells], router, size, options.out, options.jobs)
        write_report(options.out, router.name, trained_on, size, options.first_seed, results)
