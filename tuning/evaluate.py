"""Compare routers, heuristic and trained, on the same requests.

Every router meets the same episodes, seed by seed. Differences are taken within seeds. Example:

    edgeroute evaluate --load light moderate heavy --routers best checkpoint:runs/mine --out runs/comparison
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from rllib_envs.errors import InputError
from rllib_envs.scenario import PredictionLaw, Scenario, with_workload
from rllib_envs.scenarios.load import load_scenario
from tuning.evaluation.arrival_notes import notes_on_arrivals
from tuning.evaluation.comparison import compare
from tuning.evaluation.matrix import EVALUATION_SEEDS, TUNING_SEEDS, Cell, run_cells
from tuning.evaluation.prediction_notes import notes_on_predictions, predicted_by
from tuning.evaluation.report import write_report
from tuning.evaluation.service_notes import notes_on_service
from tuning.evaluation.trace_notes import notes_on_traces
from tuning.evaluation.tracking import figures_since, track_evaluation
from tuning.evaluation.trained_on import notes_on_training
from tuning.evaluation.tuned import Choice, Tuned, read_tuned, shipped_tuned
from tuning.output.tracking import TrackOptions, provenance, tracker
from tuning.specs.faults import NO_FAULT, describe_fault
from tuning.specs.grammar import MOST_SEED, check_limits
from tuning.specs.prompts import with_information
from tuning.specs.routers import NamedRouter, parse_router, parse_routers, with_tuned
from tuning.specs.workloads import NamedWorkload, TraceOptions, make_workloads

_SMOKE = {"seeds": 2, "requests": 50}


HELP = {
    "workload": ("scenario load arrivals trace.trace faults requests", "catalogue split predictions predictors trace"),
    "comparison": ("routers seeds", "baseline first_seed tuned"),
    "results": ("out smoke", ""),
    "processes": ("jobs", "address"),
    "tracking": ("", "track"),
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
    """Arrival processes, with parameters if you like: poisson mmpp gamma:cv=3 azure-conversation. Or functions of your own
    (python:mine.py:waves), whose files are run. Default: the scenario's."""
    trace: Annotated[TraceOptions, tyro.conf.arg(name="")] = field(default_factory=TraceOptions)
    faults: tuple[str, ...] = ()
    """Ways in which the world differs from what routers assume. Each is crossed with every load and arrival process. One or more
    of none, engine-fast, engine-slow, engine-mixed, engine-coefficients, lengths-short, lengths-long, lengths-hidden,
    score-noise, late-telemetry, kv-tight. Or changes within the episode: throttle, churn, impatient, blackout. all is each but
    none. unconfined is no fault: every request may go to every expert. Default: the scenario's own."""
    catalogue: Path | None = None
    """File of real prompts with scores and answer lengths by model, instead of the scenario's catalogue (docs/data.md). It must
    hold every expert's model, run on all prompts."""
    split: Literal["test", "train", "all"] = "test"
    """Prompts of that file to ask: test (no training or tuning uses them), train or all."""
    predictions: PredictionLaw | None = None
    """The routers' predictions. measured: drawn around the truth with the errors of learned predictors. oracle-noise: the truth
    with Gaussian noise. given: those of --predictors, or a prompt file's own. means: each expert's means. task-means: those
    on the prompt's task. auto: measured; for a file given, or means where nothing is given. Default: the scenario's, which is
    auto if it says nothing."""
    predictors: Path | None = None
    """Folder of predictors from fit-predictors (docs/predictors.md). They predict the prompts of the file that they were fitted
    with, each by predictors that have not seen it."""
    routers: tuple[str, ...] = ("all",)
    """all, best, heuristics by name and perhaps parameters (quality-greedy:cap=8), bundle:PATH, checkpoint:PATH. Or functions of
    your own (python:mine.py:route), whose files are run. sampled:PATH is a bundle that draws its actions as in training. A bare
    heuristic has its tuned parameters if there are any."""
    baseline: str | None = None
    """Router that differences refer to. Default: the heuristic with the best mean QoS, on each workload and over all."""
    seeds: int = 20
    """Episodes for each router and workload."""
    first_seed: int = EVALUATION_SEEDS.start
    """First seed; the others follow it. Seeds from 2,000,000 to 2,999,999 belong to tune-heuristics and are not allowed."""
    requests: int | None = None
    """Requests in an episode. Default: the scenario's, and all of a trace."""
    tuned: Path | None = None
    """Tuned parameters of the heuristics, as tune-heuristics writes them. Default: those shipped for the scenario, if any."""
    out: Path = Path("runs/evaluate")
    """Folder for the results: results.json, results.md, figures, and what a restart needs."""
    track: Annotated[TrackOptions, tyro.conf.arg(name="")] = field(default_factory=TrackOptions)
    jobs: int | None = None
    """Processes; results do not depend on it. Default: one for each core."""
    address: str | None = None
    """Ray cluster to run on instead, auto or HOST:PORT, with as many processes as it has cores. The results are the same. Every
    node must have the files of routers and scenarios."""
    smoke: bool = False
    """A tiny run that takes seconds: two seeds, fifty requests."""


def run(options: Options) -> None:
    """Run the matrix, print the tables, and write the results.

    Raises:
        InputError: an option that names nothing or is out of range; a file that cannot be read or written.
    """
    if options.smoke:
        options = replace(options, **_SMOKE)
    seeds = _seeds(options)
    scenario, notes = _with_prompts(load_scenario(options.scenario), options)
    notes += [*notes_on_service(scenario), *notes_on_predictions(scenario)]
    workloads = make_workloads(scenario, options.load, options.arrivals, options.trace, options.requests, options.faults)
    notes += notes_on_arrivals(workloads)
    for note in notes:
        print(note)
    routers, baseline = _routers(options)
    tuned = shipped_tuned(scenario) if options.tuned is None else read_tuned(options.tuned, scenario)
    choices = {} if tuned is None else {name: tuned.choose(w) for name, w in {w.clean_name: w for w in workloads}.items()}
    outside = notes_on_training(routers, workloads)
    for note in outside:
        print(f"edgeroute: warning: {note}", file=sys.stderr, flush=True)
    notes += [*notes_on_traces(workloads), *_notes_on_faults(workloads), *_notes_on_tuned(tuned, choices, workloads)]
    notes += outside
    matrix = {w.name: [with_tuned(r, choices[w.clean_name].parameters if tuned else {}) for r in routers] for w in workloads}
    cells = [Cell(router=router, scenario=w.scenario, seeds=seeds) for w in workloads for router in matrix[w.name]]
    config = _tracked(options, scenario, workloads)
    with tracker(options.track, folder=options.out, name=options.out.name, job_type="evaluate", config=config) as track:
        results = iter(run_cells(cells, options.out / "cells", options.jobs, "evaluate", address=options.address))
        comparisons = [compare(w, matrix[w.name], [next(results) for _ in routers], baseline) for w in workloads]
        began_s = time.time()
        write_report(options.out, scenario, seeds, notes, comparisons, baseline)
        track_evaluation(track, comparisons, baseline, figures_since(options.out, began_s))


def _tracked(options: Options, scenario: Scenario, workloads: Sequence[NamedWorkload]) -> dict[str, Any]:
    """The configuration of a tracked evaluation."""
    return {
        "options": asdict(options),
        "scenario": scenario.to_dict(),
        "fingerprint": scenario.fingerprint(),
        "workloads": {w.name: {"fingerprint": w.scenario.fingerprint(), "rate_rps": w.rate_rps} for w in workloads},
        **provenance(),
    }


def _seeds(options: Options) -> tuple[int, ...]:
    check_limits("seeds", options.seeds, 1, 10**6)
    check_limits("first_seed", options.first_seed, 0, MOST_SEED - options.seeds)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    if seeds.start < TUNING_SEEDS.stop and seeds.stop > TUNING_SEEDS.start:
        raise InputError(
            f"first-seed = {options.first_seed}: seeds from {TUNING_SEEDS.start} to {TUNING_SEEDS.stop - 1} are those that "
            "heuristics are tuned on; a comparison on them would favour those"
        )
    return tuple(seeds)


def _with_prompts(scenario: Scenario, options: Options) -> tuple[Scenario, list[str]]:
    """The scenario with the prompts and predictions asked for, and what to say about the prompts."""
    scenario = with_information(scenario, options.catalogue, options.predictions, options.predictors)
    catalogue = scenario.workload.catalogue
    if catalogue.kind != "file":
        return scenario, []
    chosen = with_workload(scenario, catalogue=replace(catalogue, split=options.split))
    return chosen, [f"Prompts: {catalogue.path}, split {options.split}."]


def _routers(options: Options) -> tuple[list[NamedRouter], str | None]:
    """The routers to run, and the name of the baseline among them, where one is asked for."""
    routers = parse_routers(options.routers)
    if options.baseline is None:
        return routers, None
    asked = parse_router(options.baseline)
    same = [router for router in routers if router.text == asked.text]
    return (routers, same[0].name) if same else ([*routers, asked], asked.name)


def _notes_on_faults(workloads: Sequence[NamedWorkload]) -> list[str]:
    names = [name for name in dict.fromkeys(w.fault for w in workloads) if name != NO_FAULT]
    if not names:
        return []
    return [f"Faults, on the same requests at the same rates: {', '.join(map(describe_fault, names))}."]


def _notes_on_tuned(tuned: Tuned | None, choices: Mapping[str, Choice], workloads: Sequence[NamedWorkload]) -> list[str]:
    """What parameters the heuristics have; ``choices`` by the names of the workloads without faults."""
    if tuned is None:
        return ["Heuristics have their default parameters: none were tuned for this scenario (edgeroute tune-heuristics)."]
    notes = [f"Heuristics by their bare names have the parameters that are shown with them, from {tuned.source}."]
    here = predicted_by(workloads[0].scenario)
    if tuned.predictions != here:
        notes.append(f"They were tuned for predictions that are {tuned.predictions}; here these are {here}.")
    if any(w.fault != NO_FAULT for w in workloads):
        notes.append("With a fault they are those of the same workload without.")
    return notes + [_note_on_choice(name, choice) for name, choice in choices.items() if choice.entry != name]


def _note_on_choice(workload: str, choice: Choice) -> str:
    if choice.entry is None:
        return f"{workload}: not tuned, default parameters: no arrivals that were tuned for are like these ({choice.why})."
    why = f" ({choice.why})" if choice.why else ""
    return f"Nothing is tuned for {workload}: those for {choice.entry} are used{why}."
