"""Section of a report on a sweep."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tuning.metrics.statistics import CONFIDENCE
from tuning.output.tables import ABSENT, show, show_interval, show_known
from tuning.reports.document import Block, Paragraph, Picture, Section, Table
from tuning.reports.run_folders import Sweep
from tuning.run_dir.atomic import write_atomically


def sweep_section(run: Sweep, out: Path, number: int) -> Section:
    """Tables of one sweep, and the pictures it has.

    Args:
        run: the sweep.
        out: folder for the pictures.
        number: of the sweep in the report, which its pictures are named by.
    """
    statuses = [trial.status for trial in run.trials]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    best = "" if run.best is None else f" The best is {run.best}."
    about = f"{run.name}: search {run.search}, scheduler {run.scheduler}; {len(run.trials)} trials ({counts}).{best}"
    space = [[key, domain] for key, domain in run.space.items()]
    blocks: list[Block] = [
        Paragraph(text=about),
        Table(caption="What was searched.", header=["option", "drawn from"], rows=space, names=2),
    ]
    if run.ranking:
        blocks.append(_ranking_table(run))
    for picture in run.pictures:
        file = out / f"sweep-{number}-{picture.name}"
        content = picture.read_bytes()
        write_atomically(file, lambda staged, content=content: _write_bytes(staged, content))
        blocks.append(Picture(file=file.name, caption=f"{run.name}: {picture.stem}."))
    blocks.append(_trials_table(run))
    return Section(title=f"Sweep: {run.path}", blocks=blocks)


def _ranking_table(run: Sweep) -> Table:
    rows = [
        [
            row.trial,
            show_interval("qos", row.qos),
            ABSENT if row.trial == run.reference else show_interval("qos", row.difference, signed=True),
        ]
        for row in run.ranking
    ]
    to = "" if run.reference is None else f" Difference: to {run.reference}, paired by seed."
    caption = (
        f"The best trials on {run.ranking_seeds} other episodes, with {CONFIDENCE:.0%} intervals.{to} Each setting was trained "
        f"once: how learner seeds differ is not in them. The best of {len(run.ranking)} looks better than it is."
    )
    return Table(caption=caption, header=["trial", "QoS", "difference"], rows=rows)


def _trials_table(run: Sweep) -> Table:
    keys = list(dict.fromkeys([*run.space, *(key for trial in run.trials for key in trial.settings)]))
    trials = sorted(run.trials, key=lambda trial: -trial.qos if math.isfinite(trial.qos) else math.inf)
    rows = [
        [
            trial.id,
            trial.status,
            *(_setting(trial.settings.get(key)) for key in keys),
            show("qos", trial.qos),
            show("violation_rate", trial.late_share),
            show_known(trial.gpu_s_per_request, ".3f"),
            *(show_known(figure, ",.0f") for figure in (trial.iterations, trial.steps, trial.seconds)),
        ]
        for trial in trials
    ]
    figures = ["QoS", "late, %", "GPU-seconds a request", "iterations", "steps", "seconds"]
    return Table(caption="All trials, by QoS.", header=["trial", "status", *keys, *figures], rows=rows, names=2, folded=True)


def _setting(value: Any) -> str:
    return ABSENT if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
