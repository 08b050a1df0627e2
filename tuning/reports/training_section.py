"""Sections of a report on training runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tuning.metrics.statistics import CONFIDENCE, Interval, interquartile_mean
from tuning.output.tables import ABSENT, show, show_bounds, show_interval
from tuning.reports.document import Block, Picture, Section, Table
from tuning.reports.run_folders import TrainingRun, arms
from tuning.reports.training_figures import draw_learning

_LAST = 10  # iterations that the final figures of a training run are means over


def training_sections(runs: Sequence[TrainingRun], out: Path, rng: np.random.Generator) -> list[Section]:
    """Learning curves and final figures, a section for each scenario and load that was trained on.

    Args:
        runs: training runs.
        out: folder for the pictures.
        rng: the bootstrap draws from it.
    """
    places: dict[tuple[str, str], list[TrainingRun]] = {}
    for run in runs:
        places.setdefault((run.scenario, str(run.options.get("load"))), []).append(run)
    return [
        _training_section(scenario, load, group, out / f"learning-{i}.png", rng)
        for i, ((scenario, load), group) in enumerate(places.items(), start=1)
    ]


def _training_section(scenario: str, load: str, runs: list[TrainingRun], file: Path, rng: np.random.Generator) -> Section:
    named = named_arms(runs)
    blocks: list[Block] = []
    begun = [(name, [run for run in group if run.records]) for name, group in named]
    begun = [(name, group) for name, group in begun if group]
    if begun:
        draw_learning(file, begun, rng)
        caption = (
            f"Training on {scenario}, load {load}. Lines: interquartile mean over learner seeds, smoothed over up to {_LAST} "
            f"iterations; bands: its pointwise {CONFIDENCE:.0%} bootstrap interval, where there are two seeds or more. Training "
            "explores and has faults drawn for it; the comparison with tuned impact-greedy does not, and is rough."
        )
        blocks.append(Picture(file=file.name, caption=caption))
    if any(len(group) > 1 for _, group in begun):
        blocks.append(_arms_table(begun, rng))
    blocks.append(_runs_table(named))
    return Section(title=f"Training: {scenario}, load {load}", blocks=blocks)


def named_arms(runs: Sequence[TrainingRun]) -> list[tuple[str, list[TrainingRun]]]:
    """Name arms by what differs between them: options, or the algorithm."""
    groups = arms(runs)
    keys = sorted({key for group in groups for key in group[0].options} - {"seed"})
    differing = [key for key in keys if len({repr(group[0].options.get(key)) for group in groups}) > 1]
    named = [
        (", ".join(f"{key} {group[0].options.get(key)}" for key in differing) or str(group[0].options.get("algo")), group)
        for group in groups
    ]
    names = [name for name, _ in named]
    return [  # the same options on other versions of a scenario
        (name if names.count(name) == 1 else f"{name}, world {group[0].fingerprint[:6]}", group) for name, group in named
    ]


def _arms_table(named: Sequence[tuple[str, Sequence[TrainingRun]]], rng: np.random.Generator) -> Table:
    rows: list[list[str]] = []
    for name, runs in named:
        qos = interquartile_mean([[_final(run)["qos"] for run in runs]], rng)
        validated = [found for run in runs if (found := _last_validation(run))]
        over = [[found[load]["mean"] for found in validated] for load in (validated[0] if validated else {})]
        shown = show_bounds(interquartile_mean(over, rng), signed=True) if over else ABSENT
        rows.append([name, str(len(runs)), show_bounds(qos), shown])
    return Table(
        caption="Arms over learner seeds: interquartile means at the end of training, with their intervals.",
        header=["arm", "seeds", f"QoS in training, last {_LAST} iterations", "QoS over tuned impact-greedy, over loads"],
        rows=rows,
    )


def _runs_table(named: Sequence[tuple[str, Sequence[TrainingRun]]]) -> Table:
    loads = list(dict.fromkeys(load for _, runs in named for run in runs for load in _last_validation(run)))
    rows: list[list[str]] = []
    for name, runs in named:
        for run in runs:
            final, last = _final(run), _last_validation(run)
            steps, hours = (run.records[-1].steps, run.records[-1].elapsed_s / 3600) if run.records else (0, 0.0)
            over = [
                show_interval("qos", Interval(mean=last[load]["mean"], half_width=last[load]["error"]), signed=True)
                if load in last
                else ABSENT
                for load in loads
            ]
            figures = [show("qos", final["qos"]), show("violation_rate", final["late"]), show("drop_rate", final["drop"])]
            rows.append([str(run.path), name, str(run.seed), f"{steps:,}", f"{hours:.2f}", *figures, *over])
    return Table(
        caption=f"Runs at their ends: means of training over the last {_LAST} iterations, and the last comparison with tuned "
        f"impact-greedy at each load, ± half of its {CONFIDENCE:.0%} interval over a few episodes.",
        header=["run", "arm", "seed", "steps", "hours", "QoS", "late, %", "dropped, %", *(f"over, {load}" for load in loads)],
        rows=rows,
        names=2,
    )


def _final(run: TrainingRun) -> dict[str, float]:
    last = run.records[-_LAST:]
    values = {"qos": [r.qos for r in last], "late": [r.late_share for r in last], "drop": [r.drop_share for r in last]}
    return {name: float(np.mean(found)) if found else math.nan for name, found in values.items()}


def _last_validation(run: TrainingRun) -> Mapping[str, dict[str, float]]:
    return next((record.validation for record in reversed(run.records) if record.validation), {})
