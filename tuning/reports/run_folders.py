"""Read the folders that commands write: training runs, evaluations, sweeps."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from models.rllib.checkpoint import BUNDLE, find_checkpoint
from rllib_envs.errors import InputError
from rllib_envs.json_files import read_json
from rllib_envs.yaml_files import read_mapping
from tuning.metrics.episode import EXPENSES
from tuning.metrics.statistics import Interval
from tuning.training.log import LOG, Iteration, read_log

SWEEP_PICTURES = ("importance.png", "parallel.png", "pareto.png")
"""Pictures that a sweep may have beside its results."""

REPLAY, REPLAY_PICTURE, REPLAY_FORMAT = "replay.json", "latency.png", 1
"""Files that ``edgeroute replay`` leaves, and the format of the first."""

_FORMAT = 1  # of results.json and of sweep.json
_SEED = "seed"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """The folder of ``edgeroute train``."""

    path: Path
    options: dict[str, Any]  # by name, those that define the run
    world: dict[str, Any]  # the scenario, as ``parse_scenario`` reads it
    fingerprint: str  # of the scenario
    records: list[Iteration]

    @property
    def seed(self) -> int:
        """Seed of the learner."""
        return self.options[_SEED]

    @property
    def scenario(self) -> str:
        """Name of the scenario."""
        return str(self.world.get("name", self.options.get("scenario")))

    @property
    def arm(self) -> tuple[str, str]:
        """What defines the run, apart from the learner's seed."""
        return repr(sorted((key, value) for key, value in self.options.items() if key != _SEED)), self.fingerprint

    @property
    def bundle(self) -> Path | None:
        """The router of the newest checkpoint, if there is one."""
        try:
            return find_checkpoint(self.path) / BUNDLE
        except InputError:
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterResult:
    """One router on one workload."""

    name: str
    ran_as: str  # with the parameters it had
    difference: Interval  # of QoS to the baseline's, paired by seed
    metrics: dict[str, Interval]  # over seeds; those of ``METRICS``
    qos: list[float]  # of each seed
    latency_quantiles_s: list[float]  # at evenly spaced levels from 0 to 1, of the finished requests
    ttft_quantiles_s: list[float]  # likewise; empty where the evaluation did not write them
    groups: dict[str, dict[str, list[float]]]  # title of a service class or tenant -> metric -> its value for each seed


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadResult:
    """Routers on one workload, in the order of their QoS."""

    name: str
    arrivals: str
    load: str
    fault: str
    share_of_capacity: float | None  # of the nominal rate
    rate_rps: float | None  # nominal
    baseline: str
    routers: list[RouterResult]

    def router(self, name: str) -> RouterResult:
        """The router of this name."""
        return next(router for router in self.routers if router.name == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryResult:
    """Routers over several workloads: of each the mean QoS, and its difference to the baseline."""

    title: str
    baseline: str
    workloads: list[str]
    qos: dict[str, Interval]  # by router, in the order of their QoS
    qos_per_gpu_s: dict[str, Interval]
    expenses: dict[str, dict[str, Interval]]  # those of ``EXPENSES`` that the scenario has -> by router
    difference: dict[str, Interval]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """The folder of ``edgeroute evaluate``."""

    path: Path
    scenario: str
    slo_s_per_token: float
    seeds: list[int]
    notes: list[str]
    workloads: list[WorkloadResult]
    summaries: list[SummaryResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One trial of a sweep; figures that it did not reach are NaN."""

    id: str
    settings: dict[str, Any]  # option -> value
    status: str
    iterations: float
    steps: float
    seconds: float
    qos: float
    late_share: float
    gpu_s_per_request: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A trial among those that were evaluated at the end."""

    trial: str
    qos: Interval
    difference: Interval  # to the sweep's reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The folder of ``edgeroute sweep``."""

    path: Path
    name: str
    space: dict[str, str]  # option -> what it is drawn from
    scheduler: str
    search: str
    trials: list[TrialRecord]
    ranking: list[Ranked]
    ranking_seeds: int  # episodes that its intervals are over
    reference: str | None  # trial that differences are to
    best: str | None
    pictures: list[Path]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayedPolicy:
    """A policy on a log, in the simulator."""

    name: str
    windows: int
    qos: Interval
    difference: Interval  # to what was logged
    late: float  # shares of the requests, here and below
    agreement: float
    impossible: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedPolicy:
    """A policy asked again in the places of a log."""

    name: str
    agreement: float
    drawn: int  # requests whose actions were drawn at random; without, the next three are unknown
    qos: Interval
    difference: Interval
    effective: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictedTimes:
    """How near the predicted times of one kind came at one expert."""

    expert: str
    kind: str
    count: int
    ratio: float  # measured / predicted
    error: float
    within: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogReplay:
    """The folder of ``edgeroute replay``."""

    path: Path
    scenario: str
    requests: int
    notes: list[str]
    simulated: list[ReplayedPolicy]
    asked: list[AskedPolicy]
    times: list[PredictedTimes]
    picture: Path | None


Run = TrainingRun | Evaluation | Sweep | LogReplay


def read_run(path: Path) -> Run:
    """Read a folder; its files tell its kind.

    Raises:
        InputError: no such folder, none of the kinds, or damaged files.
    """
    for name, read in _KINDS.items():
        if (path / name).is_file():
            try:
                return read(path)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise InputError(f"{path / name}: not as edgeroute writes it ({type(error).__name__}: {error})") from None
    if not path.is_dir():
        raise InputError(f"run {str(path)!r}: {'not a folder' if path.exists() else 'no such folder'}: {_EXPECTED}")
    raise InputError(f"run {str(path)!r}: none of {', '.join(_KINDS)} in it: {_EXPECTED}")


def _read_training(path: Path) -> TrainingRun:
    contents = read_mapping(path / _CONFIG, "a training run's configuration")
    options = dict(contents["options"])
    return TrainingRun(
        path=path,
        options=options | {_SEED: int(options[_SEED])},
        world=dict(contents["scenario"]),
        fingerprint=str(contents["fingerprint"]),
        records=read_log(path / LOG, sys.maxsize) if (path / LOG).exists() else [],
    )


def _read_evaluation(path: Path) -> Evaluation:
    data = _of_format(path / _RESULTS)
    return Evaluation(
        path=path,
        scenario=str(data["scenario"]),
        slo_s_per_token=float(data["slo_s_per_token"]),
        seeds=[int(seed) for seed in data["seeds"]],
        notes=[str(note) for note in data["notes"]],
        workloads=[_workload(workload) for workload in data["comparisons"]],
        summaries=[_summary(summary) for summary in data["summaries"]],
    )


def _workload(data: dict[str, Any]) -> WorkloadResult:
    rate, capacity = data["rate_rps"], data["capacity_rps"]
    return WorkloadResult(
        name=str(data["workload"]),
        arrivals=str(data["arrivals"]),
        load=str(data["load"]),
        fault=str(data["fault"]),
        share_of_capacity=float(rate) / float(capacity) if rate and capacity else None,
        rate_rps=rate,
        baseline=str(data["baseline"]),
        routers=[_router(router) for router in data["routers"]],
    )


def _router(data: dict[str, Any]) -> RouterResult:
    return RouterResult(
        name=str(data["router"]),
        ran_as=str(data["ran_as"]),
        difference=_interval(data["difference"]),
        metrics={name: _interval(metric) for name, metric in data["metrics"].items()},
        qos=[_number(value) for value in data["metrics"]["qos"]["values"]],
        latency_quantiles_s=[float(value) for value in data["latency_per_token_quantiles_s"]],
        ttft_quantiles_s=[float(value) for value in data.get("ttft_quantiles_s", [])],
        groups={
            str(title): {name: [_number(value) for value in metric["values"]] for name, metric in metrics.items()}
            for title, metrics in data.get("groups", {}).items()
        },
    )


def _summary(data: dict[str, Any]) -> SummaryResult:
    def of_routers(name: str) -> dict[str, Interval]:
        return {str(router["router"]): _interval(router[name]) for router in data["routers"]}

    return SummaryResult(
        title=str(data["title"]),
        baseline=str(data["baseline"]),
        workloads=[str(name) for name in data["workloads"]],
        qos=of_routers("qos"),
        qos_per_gpu_s=of_routers("qos_per_gpu_s"),
        expenses={name: of_routers(name) for name in EXPENSES if all(name in router for router in data["routers"])},
        difference=of_routers("difference"),
    )


def _read_sweep(path: Path) -> Sweep:
    data = _of_format(path / _SWEEP)
    return Sweep(
        path=path,
        name=str(data["name"]),
        space={str(key): str(domain) for key, domain in data["space"].items()},
        scheduler=str(data["scheduler"]),
        search=str(data["search"]),
        trials=[_trial(trial) for trial in data["trials"]],
        ranking=[
            Ranked(trial=str(row["trial"]), qos=_interval(row["qos"]), difference=_interval(row["difference"]))
            for row in data["ranking"]
        ],
        ranking_seeds=int(data["ranking_seeds"]),
        reference=data["reference"],
        best=data["best"],
        pictures=[path / name for name in SWEEP_PICTURES if (path / name).is_file()],
    )


def _read_replay(path: Path) -> LogReplay:
    data = _of_format(path / REPLAY)
    picture = path / REPLAY_PICTURE
    return LogReplay(
        path=path,
        scenario=str(data["scenario"]),
        requests=int(data["requests"]),
        notes=[str(note) for note in data["notes"]],
        simulated=[
            ReplayedPolicy(
                name=str(row["name"]),
                windows=len(row["qos"]),
                qos=_interval(row["mean"]),
                difference=_interval(row["difference"]),
                late=_number(row["violations"]),
                agreement=_number(row["agreement"]),
                impossible=_number(row["impossible"]),
            )
            for row in data["simulated"]
        ],
        asked=[_asked(row) for row in data["again"]],
        times=[
            PredictedTimes(
                expert=str(name),
                kind=str(kind),
                count=int(row["count"]),
                **{key: _number(row[key]) for key in ("ratio", "error", "within")},
            )
            for kind, rows in data["latency"].items()
            for name, row in rows.items()
        ],
        picture=picture if picture.is_file() else None,
    )


def _asked(data: dict[str, Any]) -> AskedPolicy:
    nothing: dict[str, Any] = {"requests": 0, "estimate": _UNKNOWN, "difference": _UNKNOWN, "effective": None}
    estimate = data["estimate"] or nothing
    return AskedPolicy(
        name=str(data["name"]),
        agreement=_number(data["agreement"]),
        drawn=int(estimate["requests"]),
        qos=_interval(estimate["estimate"]),
        difference=_interval(estimate["difference"]),
        effective=_number(estimate["effective"]),
    )


def _trial(data: dict[str, Any]) -> TrialRecord:
    figures = {
        name: _number(data.get(name)) for name in ("iterations", "steps", "seconds", "qos", "late_share", "gpu_s_per_request")
    }
    return TrialRecord(id=str(data["id"]), settings=dict(data["settings"]), status=str(data["status"]), **figures)


def _of_format(path: Path) -> dict[str, Any]:
    data = read_json(path)
    if not isinstance(data, dict) or cast(dict[str, Any], data).get("format") != _FORMAT:
        raise InputError(f"{path}: not of format {_FORMAT}")
    return cast(dict[str, Any], data)


def _interval(data: dict[str, Any]) -> Interval:
    return Interval(mean=_number(data["mean"]), half_width=_number(data["half_width"]))


def _number(value: Any) -> float:
    """A number of JSON; null is NaN."""
    return math.nan if value is None else float(value)


def arms(runs: Sequence[TrainingRun]) -> list[list[TrainingRun]]:
    """Group runs that differ in the learner's seed alone, sorted by seed."""
    groups: dict[tuple[str, str], list[TrainingRun]] = {}
    for run in runs:
        groups.setdefault(run.arm, []).append(run)
    return [sorted(group, key=lambda run: run.seed) for group in groups.values()]


_UNKNOWN = {"mean": None, "half_width": None}
_CONFIG, _RESULTS, _SWEEP = "config.yaml", "results.json", "sweep.json"
_KINDS: dict[str, Callable[[Path], Run]] = {
    _SWEEP: _read_sweep, _RESULTS: _read_evaluation, REPLAY: _read_replay, _CONFIG: _read_training,
}  # fmt: skip
_EXPECTED = (
    "expected is the folder of a training run (config.yaml), of an evaluation (results.json), of a sweep (sweep.json) or of a "
    "replay (replay.json), as edgeroute train, evaluate, sweep and replay write them"
)
