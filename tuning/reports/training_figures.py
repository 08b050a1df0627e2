"""Figures of training runs in a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.ticker import MaxNLocator

from tuning.metrics.statistics import interquartile_curve
from tuning.output.plot_style import (
    GREY,
    band,
    head,
    label_below,
    looks,
    panels,
    write_figure,
)
from tuning.reports.episode_replay import Floats
from tuning.reports.run_folders import TrainingRun
from tuning.training.log import Iteration

_WINDOW = 10  # iterations that training curves are means over, where there are many
_POINTS = 60  # of a training curve
_Quantity = tuple[str, Callable[[Iteration], float | None]]


def draw_learning(path: Path, arms: Sequence[tuple[str, Sequence[TrainingRun]]], rng: np.random.Generator) -> None:
    """Draw training curves: each arm's interquartile mean over its seeds, with its pointwise interval.

    Args:
        path: PNG file to write.
        arms: name and runs of each; they differ in the seed alone.
        rng: the bootstrap draws from it.
    """
    quantities: list[_Quantity] = [
        ("QoS per decision, training", lambda record: record.qos),
        ("late, %", lambda record: 100 * record.late_share),
        ("dropped, %", lambda record: 100 * record.drop_share),
        ("QoS over tuned impact-greedy", _validated),
    ]
    drawn = [(title, of) for title, of in quantities if any(_curve(run, of)[0].size for _, runs in arms for run in runs)]
    figure, axes = panels(len(drawn), 2, 2.9 * math.ceil(len(drawn) / 2) + 0.4 + 0.25 * len(arms), sharex=True)
    styles = looks(name for name, _ in arms)
    for panel, (title, of) in zip(axes, drawn, strict=True):
        for name, runs in arms:
            steps, curves = _on_common_steps([_curve(run, of) for run in runs])
            if steps.size:
                style = styles[name] | {"marker": "o" if steps.size == 1 else ""}
                band(panel, steps, *interquartile_curve(curves, rng), _with_seeds(name, runs), **style)
        head(panel, title)
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.xaxis.set_major_formatter("{x:,.0f}")
        if of is _validated:
            panel.axhline(0, color=GREY, linewidth=1)
        elif title.endswith("%"):
            panel.set_ylim(0, max(1.0, panel.get_ylim()[1]))
    label_below(axes, "environment steps")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", frameon=False, fontsize=9)
    write_figure(figure, path)


def _with_seeds(name: str, runs: Sequence[TrainingRun]) -> str:
    return f"{name} ({len(runs)} seed{'s' if len(runs) > 1 else ''})"


def _validated(record: Iteration) -> float | None:
    """The difference to the heuristic, averaged over the loads."""
    return float(np.mean([found["mean"] for found in record.validation.values()])) if record.validation else None


def _curve(run: TrainingRun, of: Callable[[Iteration], float | None]) -> tuple[Floats, Floats]:
    """Steps and values, each the mean over the last few where every iteration has one."""
    known = [(record.steps, value) for record in run.records if (value := of(record)) is not None]
    steps, values = np.array(known, np.float64).reshape(-1, 2).T
    window = 1 if of is _validated else min(_WINDOW, max(1, steps.size // 5))
    if not steps.size:
        return steps, values
    return steps[window - 1 :], np.convolve(values, np.full(window, 1 / window), mode="valid")


def _on_common_steps(curves: Sequence[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """(points,) steps that all curves with any points have, and (seeds, points) their values there."""
    known = [(steps, values) for steps, values in curves if steps.size]
    if not known:
        return np.empty(0), np.empty((0, 0))
    low, high = max(steps[0] for steps, _ in known), min(steps[-1] for steps, _ in known)
    longest = max(steps.size for steps, _ in known)
    grid = np.linspace(low, high, min(_POINTS, longest)) if high > low else np.array([min(low, high)])
    return grid, np.stack([np.interp(grid, steps, values) for steps, values in known])
