"""Run a cluster with a router and report what its requests got.

One router, one workload, one seed. Example:

    edgeroute simulate --scenario edge6 --load heavy --router impact-greedy --out run.csv
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import tyro
from pyarrow import csv, parquet

from rllib_envs.errors import InputError
from rllib_envs.scenario import PredictionLaw, Scenario
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.sim.state import TOO_LONG
from rllib_envs.simulation import STATUS_NAMES, Records, Simulation
from tuning.evaluation.arrival_notes import notes_on_arrivals
from tuning.evaluation.matrix import start_simulation
from tuning.evaluation.prediction_notes import notes_on_predictions
from tuning.evaluation.service_notes import notes_on_service
from tuning.evaluation.trace_notes import notes_on_traces, trace_json
from tuning.evaluation.trained_on import notes_on_training
from tuning.metrics.episode import episode_metrics, metrics_of, routing_shares
from tuning.metrics.groups import GROUP_METRICS, group_metrics
from tuning.output.literal import printable
from tuning.output.tables import markdown_table, metric_title, show
from tuning.run_dir.atomic import write_atomically, write_json
from tuning.specs.grammar import MOST_SEED, check_limits
from tuning.specs.prompts import with_information
from tuning.specs.routers import NamedRouter, parse_router
from tuning.specs.workloads import NamedWorkload, TraceOptions, make_workloads

_SMOKE_REQUESTS = 50
_FORMATS = {".csv": csv.write_csv, ".parquet": parquet.write_table}


HELP = {
    "workload": ("scenario load arrivals requests seed trace.trace", "catalogue predictions predictors trace"),
    "router and results": ("router out smoke", ""),
}
"""Groups of the help (``tuning/specs/command_line.py``): title -> (basic options, advanced options)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    scenario: str = "edge6"
    """Scenario: a preset (edge6, edge6-sites, paper3, balance13, edgeN with N from 2 to 256) or a YAML file."""
    router: str = "impact-greedy"
    """A heuristic, perhaps with parameters (quality-greedy:cap=8), bundle:PATH or checkpoint:PATH. Or a function of your own
    (python:mine.py:route), whose file is run."""
    load: str | None = None
    """light, moderate, heavy, mixed, native, requests/s, or a share of the capacity (70%). Default: the scenario's."""
    arrivals: str | None = None
    """Arrival process, perhaps with parameters (gamma:cv=3). Or a function of your own (python:mine.py:waves), whose file is run.
    Default: the scenario's."""
    trace: Annotated[TraceOptions, tyro.conf.arg(name="")] = field(default_factory=TraceOptions)
    catalogue: Path | None = None
    """File of real prompts, instead of the scenario's catalogue; its train split is used. See evaluate."""
    predictions: PredictionLaw | None = None
    """The routers' predictions: auto, measured, oracle-noise, given, means or task-means, as for evaluate. Default: the
    scenario's."""
    predictors: Path | None = None
    """Folder of predictors from fit-predictors, as for evaluate."""
    requests: int | None = None
    """Requests in the episode. Default: the scenario's, and all of a trace."""
    seed: int = 0
    """Seed of the episode. The same seed gives the same episode, whatever the router."""
    out: Path | None = None
    """File for the requests, one a row: .csv or .parquet. A summary goes beside it, as .json."""
    smoke: bool = False
    """A tiny run that takes a second: fifty requests."""


def run(options: Options) -> None:
    """Simulate, print the summary, and write the files asked for.

    Raises:
        InputError: an option that names nothing or is out of range; a file that cannot be read or written.
    """
    check_limits("seed", options.seed, 0, MOST_SEED)
    if options.out is not None and options.out.suffix not in _FORMATS:
        raise InputError(f"out {str(options.out)!r}: must end in {' or '.join(_FORMATS)}")
    if options.smoke:
        options = replace(options, requests=_SMOKE_REQUESTS)
    router = parse_router(options.router)
    workload = _workload(options)
    notes = [
        *notes_on_service(workload.scenario),
        *notes_on_predictions(workload.scenario),
        *notes_on_arrivals([workload]),
        *notes_on_traces([workload]),
    ]
    for note in notes:
        print(note)
    for note in notes_on_training([router], [workload]):
        print(f"edgeroute: warning: {note}", file=sys.stderr, flush=True)
    simulation = start_simulation(router, workload.scenario, [options.seed])
    summary = summarise(simulation, router, workload, options.seed) | {"notes": notes}
    print(_report(summary))
    if options.out is not None:
        _write_table(options.out, request_table(simulation.records(0), workload.scenario))
        write_json(options.out.with_suffix(".json"), summary)


def request_table(records: Records, scenario: Scenario) -> Any:
    """The outcome of each request, in order of arrival, as an Arrow table; cells that do not apply are empty."""
    names = np.array([*(expert.name for expert in scenario.experts), "drop"])
    sent = records.route < scenario.n_experts
    counted = records.status != TOO_LONG  # a request that no expert can hold has no outcome
    columns: dict[str, Any] = {
        "arrival_s": records.arrival_s,
        "expert": names[records.route],
        "status": np.array([STATUS_NAMES[status] for status in records.status.tolist()]),
        "prompt_tokens": records.prompt_tokens,
        "first_scheduled_s": records.first_scheduled_s,
        "first_token_s": records.first_token_s,
        "finish_s": records.finish_s,
        "preemptions": records.preemptions,
        "ttft_s": records.ttft_s,
        "tpot_s": records.tpot_s,
        "latency_per_token_s": records.latency_per_token_s,
        "late": records.late,
        "qos": records.qos,
    }
    for kind, entries, numbers in (("class", scenario.classes, records.service), ("tenant", scenario.tenants, records.tenant)):
        if entries:
            columns[kind] = np.array([entry.name for entry in entries])[numbers]
    of_expert = {name: getattr(records, name) for name in ("output_tokens", "predicted_tokens", "score", "predicted_score")}
    absent = dict.fromkeys(("expert", "late", "qos"), ~counted) | dict.fromkeys(of_expert, ~sent)
    return pa.table(  # from_pandas: NaN is missing
        {name: pa.array(values, mask=absent.get(name), from_pandas=True) for name, values in (columns | of_expert).items()}
    )


def summarise(simulation: Simulation, router: NamedRouter, workload: NamedWorkload, seed: int) -> dict[str, Any]:
    """Summarise the episode: ``METRICS``, and each expert's share of the requests and of busy time."""
    shares = routing_shares(workload.scenario, simulation.records(0))
    metrics = {name: value for name, value in episode_metrics(simulation, 0).items() if name in metrics_of(workload.scenario)}
    busy = simulation.state.experts["busy_s"][0] / metrics["duration_s"]
    experts = [
        {"name": expert.name, "share": share, "busy": float(b)}
        for expert, share, b in zip(workload.scenario.experts, shares[:-1], busy, strict=True)
    ]
    return {
        "scenario": workload.scenario.name,
        "fingerprint": workload.scenario.fingerprint(),
        "slo_s_per_token": workload.scenario.slo_s_per_token,
        "workload": workload.name,
        "rate_rps": workload.rate_rps,
        "router": router.text,
        "seed": seed,
        "requests": simulation.records(0).qos.size,
        "metrics": metrics,
        "experts": experts,
        "groups": group_metrics(workload.scenario, simulation.records(0), simulation.state.experts["busy_s"][0]),
        "dropped_share": shares[-1],
        "trace": trace_json(workload.scenario),
    }


def _group_table(groups: dict[str, dict[str, float]], known: Collection[str]) -> list[str]:
    """The table of service classes and tenants, if there are any, with those of their metrics that are known."""
    columns = [name for name in GROUP_METRICS if name in known]
    header = ["requests of", *map(metric_title, columns)]
    rows = [[title, *(show(name, metrics[name]) for name in columns)] for title, metrics in groups.items()]
    return [markdown_table(header, rows)] if rows else []


def _write_table(path: Path, table: Any) -> None:
    def write(staged: Path) -> None:
        _FORMATS[path.suffix](table, staged)

    write_atomically(path, write)


def _workload(options: Options) -> NamedWorkload:
    if options.trace.trace is not None and options.arrivals is not None:
        raise InputError(f"arrivals {options.arrivals!r} with a trace: a trace has its own; give one of the two")
    loads = () if options.load is None else (options.load,)
    arrivals = () if options.arrivals is None else (options.arrivals,)
    scenario = with_information(load_scenario(options.scenario), options.catalogue, options.predictions, options.predictors)
    (workload,) = make_workloads(scenario, loads, arrivals, options.trace, options.requests)
    return workload


def _report(summary: dict[str, Any]) -> str:
    rate = "" if summary["rate_rps"] is None else f" ({summary['rate_rps']:.2f}/s)"
    head = (
        f"{printable(summary['scenario'])}, {printable(summary['workload'])}{rate}, {summary['requests']} requests, "
        f"seed {summary['seed']}, "
        f"router {summary['router']}, SLO {1e3 * summary['slo_s_per_token']:g} ms per token"
    )
    metrics = [[metric_title(name), show(name, value)] for name, value in summary["metrics"].items()]
    experts = [[e["name"], f"{100 * e['share']:.1f}", f"{100 * e['busy']:.1f}"] for e in summary["experts"]]
    experts.append(["drop", f"{100 * summary['dropped_share']:.1f}", ""])
    return "\n\n".join(
        [
            head,
            markdown_table(["metric", "value"], metrics),
            markdown_table(["expert", "requests, %", "busy, % of the time"], experts),
            *_group_table(summary["groups"], summary["metrics"]),
        ]
    )
