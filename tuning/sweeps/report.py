"""Results of a sweep: its best trials ranked on more episodes, tables, figures, and the best settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.rllib.checkpoint import BUNDLE, find_checkpoint
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.yaml_files import dump_yaml
from tuning.evaluation.matrix import TUNING_SEEDS, Cell, run_cells
from tuning.metrics.statistics import Interval, mean_interval, paired_difference
from tuning.output.tables import markdown_table, show_interval, show_setting
from tuning.output.tracking import ROUTER, bundle_name, provenance, tracker
from tuning.run_dir.atomic import write_json, write_text
from tuning.specs.prompts import with_information
from tuning.specs.routers import parse_router
from tuning.sweeps.figures import draw_importance, draw_parallel, draw_pareto
from tuning.sweeps.options import SweepOptions
from tuning.sweeps.plan import GPU_S, LATE, QOS, SECONDS, STEPS, TrialPlan, written_experiment
from tuning.sweeps.space import Settings, Space, default_settings
from tuning.training.options import definition
from tuning.training.validation import validation_workloads

FORMAT = 1
_FIRST_SEED = TUNING_SEEDS.start + 500_000  # episodes that neither training validates on nor heuristics are tuned on
_SMOKE_REQUESTS, _REQUESTS = 20, 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of a trial."""

    name: str
    folder: Path
    settings: Settings
    status: str  # finished, stopped (by the scheduler), failed or unfinished
    iterations: int
    metrics: dict[str, Any]  # as last reported
    checkpoint: Path | None
    error: str | None

    @property
    def qos(self) -> float:
        """As last reported, on the validation episodes; NaN if never."""
        return float(self.metrics.get(QOS, np.nan))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rank:
    """A trial compared again."""

    trial: Finding
    values: list[float]  # QoS of each seed, mean over the loads
    qos: Interval
    difference: Interval  # to the usual settings, or to the second where they are not among the trials; paired by seed


def write_sweep(options: SweepOptions, plan: TrialPlan, trials: Sequence[Finding]) -> None:
    """Compare the finalists, print the result, and write sweep.json, sweep.md, best.yaml and the figures.

    Args:
        options: of the sweep.
        plan: what the trials had in common.
        trials: all of them, ended.

    Raises:
        InputError: a file cannot be written.
    """
    out, space = options.run_dir, plan.space
    ranking, reference = _rank(options, plan, trials)
    best = ranking[0].trial if ranking else None
    figures = [name for name, drawn in _draw(out, space, trials, best).items() if drawn]
    text = _markdown(options, space, trials, ranking, reference)
    print(text)
    write_text(out / "sweep.md", "\n\n".join([text, *(f"![{name}]({name})" for name in figures)]) + "\n")
    contents = {
        "format": FORMAT,
        "name": space.name,
        "space": {path: str(domain) for path, domain in space.parameters.items()},
        "search": options.search,
        "scheduler": options.scheduler,
        "trials": [_trial_json(trial) for trial in trials],
        "ranking": [_rank_json(rank) for rank in ranking],
        "ranking_seeds": len(ranking[0].values) if ranking else 0,
        "reference": None if reference is None else reference.name,
        "best": None if best is None else best.name,
    }
    written = ["sweep.json", "sweep.md", *figures]
    if best is not None:
        chosen = replace(written_experiment(plan, best.settings, out), smoke=False)
        write_text(out / "best.yaml", dump_yaml(definition(chosen)))
        written.append("best.yaml")
    write_json(out / "sweep.json", contents)
    _track(options, plan, contents, figures, best)
    print(f"\nWritten: {', '.join(str(out / name) for name in written)}")


def _rank(options: SweepOptions, plan: TrialPlan, trials: Sequence[Finding]) -> tuple[list[Rank], Finding | None]:
    """The finalists, the best first, and the trial that differences are to."""
    ended = [trial for trial in trials if trial.checkpoint is not None and trial.status in ("finished", "stopped")]
    ended.sort(key=lambda trial: (trial.status != "finished", -trial.qos))  # a stopped trial was among the worse ones
    chosen = ended[: options.finalists]
    usual = default_settings(plan.options, plan.space)
    reference = next((trial for trial in ended if trial.settings == usual), None)
    if reference is not None and reference not in chosen:
        chosen.append(reference)
    seeds, cells = tuple(range(_FIRST_SEED, _FIRST_SEED + options.final_seeds)), list[Cell]()
    for trial in chosen:
        assert trial.checkpoint is not None
        router = parse_router(f"bundle:{find_checkpoint(trial.checkpoint) / BUNDLE}")
        own = written_experiment(plan, trial.settings, trial.folder)
        requests = _SMOKE_REQUESTS if options.smoke else min(_REQUESTS, own.requests)
        world = with_information(load_scenario(own.scenario), own.catalogue, own.predictions, own.predictors)
        workloads = validation_workloads(world, own.load, requests)
        cells += [Cell(router=router, scenario=workload.scenario, seeds=seeds) for workload in workloads]
    results = run_cells(cells, options.run_dir / "cells", 1 if options.smoke else None, "ranking")
    each = len(cells) // max(len(chosen), 1)  # workloads
    of_trial = [results[i * each : (i + 1) * each] for i in range(len(chosen))]
    values: list[list[float]] = [np.mean([r.metrics["qos"] for r in own], axis=0).tolist() for own in of_trial]
    order = sorted(range(len(chosen)), key=lambda i: -float(np.mean(values[i])))
    if reference is None and len(order) > 1:
        reference = chosen[order[1]]
    baseline = values[chosen.index(reference)] if reference is not None else values[order[0]] if order else []
    return [
        Rank(
            trial=chosen[i],
            values=values[i],
            qos=mean_interval(values[i]),
            difference=paired_difference(values[i], baseline),
        )
        for i in order
    ], reference


def _markdown(
    options: SweepOptions, space: Space, trials: Sequence[Finding], ranking: Sequence[Rank], reference: Finding | None
) -> str:
    paths = list(space.parameters)
    rows = [
        [
            trial.name,
            trial.status,
            *(show_setting(trial.settings.get(path)) for path in paths),
            str(trial.iterations),
            f"{trial.qos:.4f}",
            f"{100 * float(trial.metrics.get(LATE, np.nan)):.2f}",
            f"{trial.metrics.get(STEPS, 0):,}",
            f"{float(trial.metrics.get(SECONDS, 0)):.0f}",
        ]
        for trial in sorted(trials, key=lambda trial: -np.nan_to_num(trial.qos, nan=-1.0))
    ]
    parts = [
        f"# Sweep of {space.name}: {len(trials)} trials, search {options.search}, scheduler {options.scheduler}",
        space.about.strip(),
        markdown_table(["trial", "state", *paths, "iterations", "QoS, validation", "late, %", "steps", "s"], rows, names=2),
    ]
    if not ranking:
        return "\n\n".join([*parts, "No trial has a checkpoint: there is nothing to rank."])
    to = "" if reference is None else f" Difference: to {reference.name}, paired by seed."
    parts += [
        "## The best, compared again",
        f"QoS on {len(ranking[0].values)} other episodes at each load, mean over the loads; means over seeds ± half of the 95 % "
        f"t-interval.{to} The intervals are of one comparison each: of {len(ranking)} that are made, the best looks better "
        "than it is. They do not hold the spread between learner seeds: each setting was trained once.",
        markdown_table(
            ["trial", "QoS", "difference"],
            [
                [
                    rank.trial.name,
                    show_interval("qos", rank.qos),
                    "–" if rank.trial is reference else show_interval("qos", rank.difference, signed=True),
                ]
                for rank in ranking
            ],
        ),
        _verdict(ranking, reference),
    ]
    return "\n\n".join(part for part in parts if part)


def _verdict(ranking: Sequence[Rank], reference: Finding | None) -> str:
    best = ranking[0]
    if reference is None or best.trial is reference:
        return f"Best: {best.trial.name}."
    clear = best.difference.low > 0
    return f"Best: {best.trial.name}, {'better than' if clear else 'not to be told from'} {reference.name} on these episodes."


def _trial_json(trial: Finding) -> dict[str, Any]:
    return {
        "id": trial.name,
        "settings": trial.settings,
        "status": trial.status,
        "iterations": trial.iterations,
        "steps": trial.metrics.get(STEPS),
        "seconds": trial.metrics.get(SECONDS),
        "qos": trial.qos,
        "late_share": trial.metrics.get(LATE),
        "gpu_s_per_request": trial.metrics.get(GPU_S),
        "error": trial.error,
    }


def _rank_json(rank: Rank) -> dict[str, Any]:
    return {"trial": rank.trial.name, "values": rank.values, "qos": asdict(rank.qos), "difference": asdict(rank.difference)}


def _draw(out: Path, space: Space, trials: Sequence[Finding], best: Finding | None) -> dict[str, bool]:
    """Figure -> whether there was enough to draw it."""
    known = [trial for trial in trials if np.isfinite(trial.qos)]
    settings, qos = [trial.settings for trial in known], [trial.qos for trial in known]
    marked = None if best is None else next(i for i, trial in enumerate(known) if trial is best)
    gpu_s = [float(trial.metrics.get(GPU_S, np.nan)) for trial in known]
    return {
        "parallel.png": draw_parallel(out / "parallel.png", space, settings, qos, marked),
        "importance.png": draw_importance(out / "importance.png", space, settings, qos),
        "pareto.png": draw_pareto(out / "pareto.png", [trial.name for trial in known], gpu_s, qos),
    }


def _track(
    options: SweepOptions, plan: TrialPlan, contents: dict[str, Any], figures: Sequence[str], best: Finding | None
) -> None:
    group, space = plan.options.track, plan.space
    config = {"space": space.to_dict(), "search": options.search, "scheduler": options.scheduler, **provenance()}
    with tracker(group, folder=options.run_dir, name=options.run_dir.name, job_type="sweep", config=config, resume=True) as track:
        paths = list(space.parameters)
        rows = [
            [trial["id"], trial["status"], *(str(trial["settings"].get(path)) for path in paths), trial["qos"]]
            for trial in contents["trials"]
        ]
        track.table("trials", ["trial", "status", *paths, "qos"], rows)
        for name in figures:
            track.image(name.partition(".")[0], options.run_dir / name)
        if best is not None and best.checkpoint is not None:
            bundle = find_checkpoint(best.checkpoint) / BUNDLE
            name = bundle_name(bundle)
            track.artifact(bundle, name.name, ROUTER, metadata=name.about, aliases=[name.alias])
        track.summary({"best": None if best is None else best.name, **({} if best is None else {"best_qos": best.qos})})
