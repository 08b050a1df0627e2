"""Run a matrix of routers and workloads in parallel, and keep the result of each cell.

A cell is one router on one workload, with all its seeds as one batch of clusters. Its result never depends on the number of
processes. Its file is named by a fingerprint of everything that determines it, including the source code, so that an interrupted
run resumes where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rllib_envs.errors import InputError
from rllib_envs.heuristic import RoutingPolicy
from rllib_envs.json_files import read_json
from rllib_envs.own_code import parse_own
from rllib_envs.scenario import Scenario
from rllib_envs.simulation import Records, Simulation
from tuning.evaluation.processes import run_all
from tuning.metrics.episode import METRICS, episode_metrics, latency_quantiles, routing_shares, ttft_quantiles
from tuning.metrics.groups import GROUP_METRICS, group_metrics
from tuning.output.progress import Progress
from tuning.run_dir.atomic import write_json
from tuning.run_dir.digests import code_digest, content_digest
from tuning.specs.grammar import check_limits
from tuning.specs.routers import NamedRouter, build_router

EVALUATION_SEEDS = range(1_000_000, 2_000_000)
TUNING_SEEDS = range(2_000_000, 3_000_000)
"""Seeds of the episodes that routers are compared on, and of those that parameters are chosen on: no episode is in both."""

_TASK_RETRIES = 3
_ROUTER_STREAM = 7  # keeps a router's own draws apart from every episode's


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One router on one workload."""

    router: NamedRouter
    scenario: Scenario
    seeds: tuple[int, ...]

    @property
    def key(self) -> str:
        """Fingerprint of everything that the result depends on, twenty-four hex digits."""
        arrivals, catalogue = self.scenario.workload.arrivals, self.scenario.workload.catalogue
        trace = None if arrivals.trace is None else arrivals.trace.path
        own = parse_own(arrivals.kind, "arrivals").file if arrivals.is_own else None
        files = (trace, catalogue.path, self.scenario.predictions.predictors, self.router.path, own)
        parts = (
            self.router.text,
            content_digest([Path(file) for file in files if file is not None]),
            self.scenario.fingerprint(),
            self.seeds,
            code_digest(),
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellResult:
    """The result of a cell."""

    key: str
    router: str
    seeds: list[int]
    metrics: dict[str, list[float]]  # of METRICS, a value for each seed
    shares: list[list[float]]  # (seeds, N+1): share of the requests sent to each expert, and dropped
    latency_quantiles_s: list[float]  # latency per token of all finished requests, at evenly spaced levels from 0 to 1
    ttft_quantiles_s: list[float]  # the same of the time to first token
    groups: dict[str, dict[str, list[float]]]  # title of a class or tenant -> GROUP_METRICS, a value for each seed


def start_simulation(router: NamedRouter | RoutingPolicy, scenario: Scenario, seeds: Sequence[int]) -> Simulation:
    """Run one whole episode for each seed.

    Args:
        router: as ``parse_router`` reads it, or a function of (simulation, generator).
        scenario: the world; its observation is changed to what the router needs.
        seeds: of the episodes.
    """
    decide, observation = build_router(router, scenario.observation)
    simulation = Simulation(replace(scenario, observation=observation), len(seeds))
    simulation.start_all(list(seeds))
    rng = np.random.default_rng(np.random.SeedSequence(list(seeds), spawn_key=(_ROUTER_STREAM,)))
    while not simulation.over.all():
        simulation.step(decide(simulation, rng))
    return simulation


def run_cell(cell: Cell) -> CellResult:
    """Simulate a cell."""
    simulation = start_simulation(cell.router, cell.scenario, cell.seeds)
    clusters = range(len(cell.seeds))
    episodes = [episode_metrics(simulation, cluster) for cluster in clusters]
    records = [simulation.records(cluster) for cluster in clusters]
    return CellResult(
        key=cell.key,
        router=cell.router.text,
        seeds=list(cell.seeds),
        metrics={name: [episode[name] for episode in episodes] for name in METRICS},
        shares=[routing_shares(cell.scenario, r) for r in records],
        latency_quantiles_s=latency_quantiles(records),
        ttft_quantiles_s=ttft_quantiles(records),
        groups=_groups(cell.scenario, records, simulation.state.experts["busy_s"]),
    )


def _groups(scenario: Scenario, records: Sequence[Records], busy_s: NDArray[np.float64]) -> dict[str, dict[str, list[float]]]:
    """Metrics of each class and tenant, a value for each seed; ``busy_s`` (seeds, N)."""
    episodes = [group_metrics(scenario, r, busy) for r, busy in zip(records, busy_s, strict=True)]
    return {title: {name: [e[title][name] for e in episodes] for name in GROUP_METRICS} for title in episodes[0]}


def run_cells(
    cells: Sequence[Cell], folder: Path, jobs: int | None, label: str, *, address: str | None = None
) -> list[CellResult]:
    """Run cells and return their results in order. Finished ones are read from ``folder``; new ones are written there.

    Args:
        cells: what to run; equal ones run once.
        folder: where each finished cell is kept as one file.
        jobs: processes; None for one a core, 1 to run in this process.
        label: what the progress line calls it.
        address: Ray cluster to run them on, each as a task for one core, instead of processes here.

    Raises:
        InputError: jobs < 1, a file or folder that cannot be read or written, a cluster that cannot be used, anything the cells
            themselves find wrong.
        KeyboardInterrupt: at once; finished cells stay.
    """
    check_limits("jobs", jobs, 1, 4096)
    files = [folder / f"{cell.key}.json" for cell in cells]
    unfinished = {file: cell for file, cell in zip(files, cells, strict=True) if not file.exists()}
    todo = list(unfinished.items())
    progress = Progress(label, len(set(files)), len(set(files)) - len(todo))
    try:
        if address is not None and todo:
            _run_on_cluster(todo, address, progress)
        else:
            run_all(_run_and_keep, todo, jobs, progress)
    except KeyboardInterrupt:
        progress.interrupted(f"finished cells are kept in {folder}; the same command goes on from there")
        raise
    return [_read_result(file) for file in files]


def _run_on_cluster(work: list[tuple[Path, Cell]], address: str, progress: Progress) -> None:
    """Run each cell as a Ray task and keep the results here. Ray reruns the task of a lost node elsewhere."""
    from tuning.ray_cluster.check import Needs
    from tuning.ray_cluster.session import ray_session

    with ray_session(address, Needs(cpus=1)):
        import ray
        from ray.exceptions import RayError, RayTaskError

        task = ray.remote(num_cpus=1, max_retries=_TASK_RETRIES)(run_cell)
        running = {task.remote(cell): file for file, cell in work}
        while running:
            (reference,), _ = ray.wait(list(running), num_returns=1)
            try:
                result = ray.get(reference)
            except RayTaskError as error:
                if isinstance(error.cause, InputError):
                    raise InputError(f"on a node of the cluster: {error.cause}") from None
                raise
            except RayError as error:
                raise InputError(f"the cluster lost a task for good: {str(error).strip().splitlines()[0]}") from None
            _keep(running.pop(reference), result)
            progress.advance()


def _run_and_keep(work: tuple[Path, Cell]) -> None:
    file, cell = work
    _keep(file, run_cell(cell))


def _keep(file: Path, result: CellResult) -> None:
    if result.key != file.stem:
        raise InputError("the source code or a file of the scenario changed while the run was going on: start it again")
    write_json(file, asdict(result))


def _read_result(file: Path) -> CellResult:
    try:
        data: dict[str, Any] = read_json(file)
        metrics: Any = _numbers(data["metrics"], METRICS)
        groups: Any = {title: _numbers(values, GROUP_METRICS) for title, values in data["groups"].items()}
        return CellResult(**{**data, "metrics": metrics, "groups": groups})
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{file}: not the result of a cell: delete it and run the command again") from None


def _numbers(values: Mapping[str, Sequence[float | None]], names: Iterable[str]) -> dict[str, list[float]]:
    """Values by name as JSON has them, where NaN is null."""
    return {name: [float("nan") if value is None else float(value) for value in values[name]] for name in names}
