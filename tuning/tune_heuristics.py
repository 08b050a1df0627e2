"""Tune the parameters of the heuristic routers for a scenario.

On each workload it maximises the mean QoS over a coarse grid, then over a finer one around the best. All settings meet the same
episodes, whose seeds no comparison uses. Example:

    edgeroute tune-heuristics --scenario edge6 --load light moderate heavy --out tuned.json

With --routers only those are tuned, and what the file says of others stays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, cast

import tyro

from rllib_envs.baselines import HEURISTICS
from rllib_envs.errors import InputError
from rllib_envs.json_files import read_json
from rllib_envs.scenario import PredictionLaw, Scenario
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.workload.replay import episode_requests
from tuning.evaluation.matrix import TUNING_SEEDS, Cell, CellResult, run_cells
from tuning.evaluation.prediction_notes import notes_on_predictions, predicted_by
from tuning.evaluation.trace_notes import notes_on_traces
from tuning.evaluation.tuned import FORMAT, read_tuned, tuning_fingerprint
from tuning.metrics.statistics import mean_interval, paired_difference
from tuning.output.tables import markdown_table, show_interval
from tuning.run_dir.atomic import write_json
from tuning.run_dir.digests import code_digest
from tuning.specs.grammar import format_spec, nearest
from tuning.specs.prompts import with_information
from tuning.specs.routers import parse_router
from tuning.specs.workloads import NamedWorkload, TraceOptions, make_workloads

Grid = Mapping[str, Sequence[float]]  # parameter -> values; every combination is tried

COARSE: dict[str, Grid] = {name: heuristic.grid for name, heuristic in HEURISTICS.items() if heuristic.grid}
_Key = tuple[str, str]  # workload, router
_SMOKE = {"seeds": 2, "requests": 50}


HELP = {
    "workload": ("scenario load arrivals requests trace.trace", "catalogue predictions predictors trace"),
    "search": ("seeds out jobs smoke", "routers"),
}
"""Groups of the help (``tuning/specs/command_line.py``): title -> (basic options, advanced options)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    scenario: str = "edge6"
    """Scenario: a preset (edge6, edge6-sites, paper3, balance13, edgeN with N from 2 to 256) or a YAML file."""
    load: tuple[str, ...] = ()
    """Loads: light, moderate, heavy, mixed, native, requests/s, or shares of the capacity (70%). Default: the scenario's."""
    arrivals: tuple[str, ...] = ()
    """Arrival processes, with parameters if you like: poisson mmpp gamma:cv=3 azure-conversation. Default: the scenario's."""
    trace: Annotated[TraceOptions, tyro.conf.arg(name="")] = field(default_factory=TraceOptions)
    catalogue: Path | None = None
    """File of real prompts, instead of the scenario's catalogue; its train split is used. See evaluate."""
    predictions: PredictionLaw | None = None
    """The routers' predictions: auto, measured, oracle-noise, given, means or task-means, as for evaluate. Default: the
    scenario's."""
    predictors: Path | None = None
    """Folder of predictors from fit-predictors, as for evaluate. Prompts of the train split have out-of-fold predictions."""
    routers: tuple[str, ...] = ()
    """Heuristics to tune; of others the file keeps what it says. Default: all with parameters to tune, in a new file."""
    seeds: int = 10
    """Episodes for each combination and workload; their seeds start at 2,000,000."""
    requests: int | None = None
    """Requests in an episode. Default: the scenario's."""
    out: Path = Path("runs/tune-heuristics/tuned.json")
    """File for the parameters. The folder `cells` beside it holds what a restart needs."""
    jobs: int | None = None
    """Processes; results do not depend on it. Default: one for each core."""
    smoke: bool = False
    """A tiny run that takes seconds: two seeds, fifty requests, two values of each parameter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterTrial:
    """One router with parameters on one workload."""

    router: str
    parameters: dict[str, float]
    result: CellResult

    @property
    def qos(self) -> float:
        """Mean QoS over the tuning seeds."""
        return mean_interval(self.result.metrics["qos"]).mean


def run(options: Options) -> None:
    """Tune, print the result, and write the file.

    Raises:
        InputError: an option that names nothing or is out of range; a file that cannot be read or written.
    """
    if options.smoke:
        options = replace(options, **_SMOKE)
    if not 1 <= options.seeds <= len(TUNING_SEEDS):
        raise InputError(f"seeds = {options.seeds}: must be from 1 to {len(TUNING_SEEDS)}")
    scenario = with_information(load_scenario(options.scenario), options.catalogue, options.predictions, options.predictors)
    workloads = make_workloads(scenario, options.load, options.arrivals, options.trace, options.requests)
    for note in (*notes_on_predictions(scenario), *notes_on_traces(workloads)):
        print(note)
    grids = {router: _grid(router) for router in options.routers} or COARSE
    coarse = {router: _two_each(grid) for router, grid in grids.items()} if options.smoke else grids
    content: dict[str, Any] = {
        "format": FORMAT,
        "scenario": scenario.name,
        "fingerprint": tuning_fingerprint(scenario),
        "predictions": predicted_by(scenario),
        "code": code_digest(),
        "seeds": {"first": TUNING_SEEDS.start, "count": options.seeds},
        "requests": episode_requests(workloads[0].scenario.workload),
    }
    known = _known(options, scenario, content) if options.routers and options.out.exists() else None
    keys = [(w.name, router) for w in workloads for router in coarse]
    default = _try(options, workloads, {key: [{}] for key in keys}, "default parameters")
    trials = _try(options, workloads, {key: _combinations(coarse[key[1]]) for key in keys}, "coarse grid")
    finer = {key: _around(_best(trials[key]).parameters, coarse[key[1]], key[1]) for key in keys}
    fine = _try(options, workloads, finer, "fine grid")
    best = {key: _best([*trials[key], *fine[key]]) for key in keys}
    print(_report(best, {key: default[key][0] for key in keys}))
    content["workloads"] = {w.name: _entry(w, [best[w.name, router] for router in coarse]) for w in workloads}
    write_json(options.out, content if known is None else _beside(known, content, list(coarse)))
    print(f"\nWritten: {options.out}")


def _entry(workload: NamedWorkload, best: Sequence[ParameterTrial]) -> dict[str, Any]:
    return {
        "arrivals": workload.arrivals,
        "share_of_capacity": workload.share_of_capacity,
        "parameters": {trial.router: trial.parameters for trial in best},
        "qos": {trial.router: trial.qos for trial in best},
    }


def _grid(router: str) -> Grid:
    if router not in COARSE:
        raise InputError(f"routers: {router!r} has no parameters to tune, or does not exist: {nearest(router, COARSE)}")
    return COARSE[router]


def _known(options: Options, scenario: Scenario, content: Mapping[str, Any]) -> dict[str, Any]:
    """What the file says already; its entries must be for the same world and the same law of predictions."""
    law = read_tuned(options.out, scenario).predictions
    if law != content["predictions"]:
        raise InputError(
            f"{options.out}: predictions = {law!r}: must be {content['predictions']!r} to add to it: give --predictions "
            f"{law}, or another --out"
        )
    return read_json(options.out)


def _beside(known: dict[str, Any], new: dict[str, Any], routers: Sequence[str]) -> dict[str, Any]:
    """``known`` with the routers of ``new`` in its workloads, and how these came about."""
    workloads: dict[str, Any] = known["workloads"]
    for name, entry in new["workloads"].items():
        own = cast(dict[str, dict[str, Any]], workloads.setdefault(name, entry | {"parameters": {}, "qos": {}}))
        for part in ("parameters", "qos"):
            own[part] = own.get(part, {}) | entry[part]
    how = {"routers": list(routers), **{key: new[key] for key in ("code", "seeds", "requests")}}
    added = known.get("added", [])
    return {**known, "added": added if how in added else [*added, how]}


def _try(
    options: Options, workloads: Sequence[NamedWorkload], points: Mapping[_Key, Sequence[dict[str, float]]], label: str
) -> dict[_Key, list[ParameterTrial]]:
    """Run every point of every workload and router."""
    scenarios = {w.name: w.scenario for w in workloads}
    flat = [(key, parameters) for key, combinations in points.items() for parameters in combinations]
    seeds = tuple(TUNING_SEEDS[: options.seeds])
    cells = [
        Cell(router=parse_router(format_spec(router, parameters)), scenario=scenarios[name], seeds=seeds)
        for (name, router), parameters in flat
    ]
    results = run_cells(cells, options.out.parent / "cells", options.jobs, label)
    trials: dict[_Key, list[ParameterTrial]] = {key: [] for key in points}
    for (key, parameters), result in zip(flat, results, strict=True):
        trials[key].append(ParameterTrial(router=key[1], parameters=parameters, result=result))
    return trials


def _best(trials: Sequence[ParameterTrial]) -> ParameterTrial:
    """The first trial with the greatest mean QoS."""
    return max(trials, key=lambda trial: trial.qos)


def _combinations(grid: Grid) -> list[dict[str, float]]:
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def _two_each(grid: Grid) -> Grid:
    """The two middle values of each parameter, of which there are at least two."""
    return {name: values[len(values) // 2 - 1 : len(values) // 2 + 1] for name, values in grid.items()}


def _around(best: Mapping[str, float], grid: Grid, router: str) -> list[dict[str, float]]:
    """Combinations of the best point's values and the middles to their neighbours; the best point itself is left out."""
    parameters = HEURISTICS[router].parameters
    finer = {name: _with_middles(best[name], values, whole=parameters[name].whole) for name, values in grid.items()}
    return [point for point in _combinations(finer) if point != best]


def _with_middles(value: float, values: Sequence[float], *, whole: bool) -> list[float]:
    """The value, and the middle to each of its neighbours."""
    i = list(values).index(value)
    middles = [(value + other) / 2 for other in values[max(i - 1, 0) : i + 2]]
    return sorted({value, *(float(math.floor(m)) if whole else round(m, 6) for m in middles)})


def _report(best: Mapping[_Key, ParameterTrial], default: Mapping[_Key, ParameterTrial]) -> str:
    rows = [
        [
            workload,
            format_spec(router, found.parameters),
            show_interval("qos", mean_interval(found.result.metrics["qos"])),
            show_interval(
                "qos",
                paired_difference(found.result.metrics["qos"], default[workload, router].result.metrics["qos"]),
                signed=True,
            ),
        ]
        for (workload, router), found in best.items()
    ]
    return markdown_table(["workload", "router", "QoS", "over default parameters"], rows, names=2)
