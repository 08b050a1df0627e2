"""Measure the headroom in drawn worlds, and keep each world's result in one file named by all that determines it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rllib_envs.errors import InputError
from rllib_envs.json_files import read_json
from rllib_envs.scenario import Scenario
from tuning.evaluation.processes import run_all
from tuning.headroom.episodes import Improved, improve
from tuning.headroom.rollout import Search
from tuning.many_worlds.fleets import make_fleets
from tuning.many_worlds.tuned import Point, tune
from tuning.many_worlds.worlds import NamedWorld
from tuning.output.progress import Progress
from tuning.run_dir.atomic import write_json
from tuning.run_dir.digests import code_digest, content_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadroomSize:
    """How much is simulated in a world."""

    episodes: int
    requests: int  # of an episode
    experts: int | None  # of each drawn fleet; None to draw the number
    tuning_episodes: int  # for each value of a parameter of the base policy
    tuning_requests: int  # of such an episode
    every: int  # roll-outs decide at every so many decisions


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldHeadroom:
    """What a world gave."""

    world: NamedWorld
    experts: int
    parameters: Point  # of the base policy, tuned for the world
    episodes: list[Improved]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    world: NamedWorld
    fleet: Scenario
    size: HeadroomSize
    search: Search
    code: str
    file: Path


def measure(
    chosen: Sequence[NamedWorld], size: HeadroomSize, search: Search, folder: Path, jobs: int | None, *, only_kept: bool = False
) -> list[WorldHeadroom]:
    """Measure the headroom over tuned impact-greedy in each world.

    Args:
        chosen: the worlds.
        size: how much is simulated.
        search: how actions are compared.
        folder: where results are kept. Those that are there are not measured again.
        jobs: processes; None for one a core. Results do not depend on it.
        only_kept: measure nothing: the results of the worlds that are finished.

    Raises:
        InputError: a file that cannot be read or written.
        KeyboardInterrupt: at once; what is finished stays.
    """
    fleets = make_fleets(list(dict.fromkeys(w.fleet for w in chosen)), folder / "fleets", jobs, experts=size.experts)
    code = _code()
    tasks = list[_Task]()
    for world in chosen:
        fleet = fleets[world.fleet]
        parts = (code, fleet.fingerprint(), world.name, world.fleet.seed, asdict(size), asdict(search))
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
        tasks.append(_Task(world=world, fleet=fleet, size=size, search=search, code=code, file=folder / "worlds" / f"{key}.json"))
    if only_kept:
        return [_read(task) for task in tasks if task.file.exists()]
    todo = [task for task in tasks if not task.file.exists()]
    progress = Progress("worlds", len(tasks), len(tasks) - len(todo))
    try:
        run_all(_measure_and_keep, todo, jobs, progress)
    except KeyboardInterrupt:
        progress.interrupted(f"what is finished is kept in {folder}; the same command goes on from there")
        raise
    return [_read(task) for task in tasks]


def _code() -> str:
    """Digest of the source code that decides a result."""
    here = Path(__file__).parent
    worlds = [here.parent / "many_worlds" / name for name in ("fleets.py", "worlds.py", "tuned.py")]
    return code_digest() + content_digest([*sorted(here.glob("*.py")), *worlds])


def _measure_and_keep(task: _Task) -> None:
    size, world = task.size, task.world
    parameters = tune(world.scenario(task.fleet, size.tuning_requests), world.tuning_seeds(size.tuning_episodes))
    scenario, seeds = world.scenario(task.fleet, size.requests), world.seeds(size.episodes)
    found = improve(scenario, parameters, task.search, seeds, every=size.every)
    if _code() != task.code:
        raise InputError("the source code changed while the run was going on: start it again")
    write_json(
        task.file,
        {"world": world.name, "parameters": parameters, "episodes": [asdict(episode) for episode in found]},
    )


def _read(task: _Task) -> WorldHeadroom:
    data: Any = read_json(task.file)
    try:
        return WorldHeadroom(
            world=task.world,
            experts=task.fleet.n_experts,
            parameters=data["parameters"],
            episodes=[Improved(**episode) for episode in data["episodes"]],
        )
    except (KeyError, TypeError):
        raise InputError(f"{task.file}: not the result of a world: delete it and try again") from None
