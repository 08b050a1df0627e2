"""Measure a router and its baselines in worlds, and keep each result.

A result has a file named by all that determines it, including the source code. Baselines and router have separate files, so that
a second router meets the baselines of the first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rllib_envs.baselines import HEURISTICS
from rllib_envs.errors import InputError
from rllib_envs.json_files import read_json
from rllib_envs.scenario import Scenario
from tuning.evaluation.matrix import start_simulation
from tuning.evaluation.processes import run_all
from tuning.many_worlds.fleets import make_fleets
from tuning.many_worlds.tuned import BASELINE, Point, tune
from tuning.many_worlds.worlds import NamedWorld
from tuning.metrics.episode import mean_qos
from tuning.output.progress import Progress
from tuning.run_dir.atomic import write_json
from tuning.run_dir.digests import code_digest, content_digest
from tuning.specs.grammar import format_spec
from tuning.specs.routers import NamedRouter, parse_router

PLAIN = tuple(name for name in HEURISTICS if parse_router(name).is_plain)
"""Heuristics that predict no impact, with their default parameters."""

UNTUNED, TUNED = "untuned", "tuned"
"""Impact-greedy with default parameters, and with those that are tuned for the world."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is simulated in a world."""

    episodes: int
    requests: int  # of an episode
    experts: int | None  # of each drawn fleet; None to draw the number


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldResult:
    """What a world gave: QoS per arrived request of each episode."""

    world: NamedWorld
    experts: int
    parameters: Point  # of the tuned baseline
    baselines: dict[str, list[float]]  # untuned, tuned, and the plain heuristics
    router: list[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    world: NamedWorld
    scenario: Scenario
    router: NamedRouter
    episodes: int
    made_of: tuple[str, str]
    baselines: Path  # files of the results
    own: Path

    @property
    def files(self) -> tuple[Path, Path]:
        return self.baselines, self.own


def measure(chosen: Sequence[NamedWorld], router: NamedRouter, size: Size, folder: Path, jobs: int | None) -> list[WorldResult]:
    """Measure the router and its baselines in each world.

    Args:
        chosen: the worlds.
        router: what is measured.
        size: how much is simulated.
        folder: where results are kept. Those that are there are not measured again.
        jobs: processes; None for one a core. Results do not depend on it.

    Raises:
        InputError: a file that cannot be read or written; the router cannot be loaded.
        KeyboardInterrupt: at once; what is finished stays.
    """
    drawn = make_fleets(list(dict.fromkeys(w.fleet for w in chosen)), folder / "fleets", jobs, experts=size.experts)
    code, own = _made_of(router)
    fingerprints = {fleet: scenario.fingerprint() for fleet, scenario in drawn.items()}
    tasks = list[_Task]()
    for world in chosen:
        scenario = world.scenario(drawn[world.fleet], size.requests)
        parts = (code, fingerprints[world.fleet], world.load, world.arrivals, world.told, world.kind, size.requests)
        parts += (world.seeds(size.episodes), world.tuning_seeds(size.episodes))
        files = (folder / "baselines" / f"{_key(*parts)}.json", folder / "router" / f"{_key(*parts, router.text, own)}.json")
        tasks.append(
            _Task(
                world=world, scenario=scenario, router=router, episodes=size.episodes, made_of=(code, own),
                baselines=files[0], own=files[1],
            )
        )  # fmt: skip
    todo = [task for task in tasks if not all(file.exists() for file in task.files)]
    progress = Progress("worlds", len(tasks), len(tasks) - len(todo))
    try:
        run_all(_measure_and_keep, todo, jobs, progress)
    except KeyboardInterrupt:
        progress.interrupted(f"what is finished is kept in {folder}; the same command goes on from there")
        raise
    return [_read(task) for task in tasks]


_CODE = ("fleets.py", "worlds.py", "tuned.py", "measure.py")  # what decides a result beside the code of a cell


def _made_of(router: NamedRouter) -> tuple[str, str]:
    """Digests of the source code and of the router's files."""
    code = code_digest() + content_digest([Path(__file__).parent / name for name in _CODE])
    return code, content_digest([] if router.path is None else [router.path])


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def _measure_and_keep(task: _Task) -> None:
    for file, run in ((task.baselines, _baselines), (task.own, _router)):
        if not file.exists():
            found = run(task)
            if _made_of(task.router) != task.made_of:
                raise InputError("the source code or the router changed while the run was going on: start it again")
            write_json(file, found)


def _baselines(task: _Task) -> dict[str, Any]:
    parameters = tune(task.scenario, task.world.tuning_seeds(task.episodes))
    texts = {UNTUNED: BASELINE, TUNED: format_spec(BASELINE, parameters)} | {name: name for name in PLAIN}
    qos = {name: _qos(task, parse_router(text)) for name, text in texts.items()}
    return {"parameters": parameters, "qos": qos}


def _router(task: _Task) -> dict[str, Any]:
    return {"qos": _qos(task, task.router)}


def _qos(task: _Task, router: NamedRouter) -> list[float]:
    simulation = start_simulation(router, task.scenario, task.world.seeds(task.episodes))
    return [mean_qos(simulation.records(cluster)) for cluster in range(task.episodes)]


def _read(task: _Task) -> WorldResult:
    baselines, own = read_json(task.baselines), read_json(task.own)
    try:
        return WorldResult(
            world=task.world,
            experts=task.scenario.n_experts,
            parameters=baselines["parameters"],
            baselines={name: baselines["qos"][name] for name in (UNTUNED, TUNED, *PLAIN)},
            router=own["qos"],
        )
    except (KeyError, TypeError):
        raise InputError(f"{task.own} or {task.baselines}: not the result of a world: delete both and try again") from None
