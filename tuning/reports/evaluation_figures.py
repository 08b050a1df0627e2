"""Figures of evaluations in a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tuning.metrics.episode import METRICS
from tuning.metrics.statistics import Interval
from tuning.output.plot_style import (
    COLOURS,
    GREY,
    band,
    head,
    label_below,
    log_axis,
    looks,
    mark_slo,
    panels,
    short,
    write_figure,
)
from tuning.output.tables import metric_title
from tuning.reports.episode_replay import Floats
from tuning.reports.run_folders import Evaluation, RouterResult, WorkloadResult

MOST_PANELS = 9
"""Workloads that a figure has panels for, at most."""

CLOSE = 0.01
"""Differences of QoS up to here are drawn to scale, larger ones by their logarithm, if there are much larger ones."""

FAILURES = {"violation_rate": "#D55E00", "drop_rate": "0.25", "rejected_rate": "#E69F00"}
"""Metrics of requests that came to nothing -> colour."""

_WIDE = 0.1  # a much larger difference of QoS than ``CLOSE``
_LEGEND_COLUMNS = 4
_FOREST: dict[str, dict[str, Any]] = {
    "baseline": {"color": GREY, "marker": "d"},
    "unclear": {"color": GREY, "marker": "o"},
    "better": {"color": COLOURS[0], "marker": "o"},
    "worse": {"color": COLOURS[1], "marker": "o"},
}
_Quantiles = tuple[str, float, Callable[[RouterResult], Floats]]


def draw_against_load(path: Path, evaluation: Evaluation, workloads: Sequence[WorkloadResult]) -> None:
    """Draw QoS, and QoS per busy GPU-second, against the load: a line a router, with 95 % intervals of the means.

    Args:
        path: PNG file to write.
        evaluation: where they come from.
        workloads: two or more of the same arrivals, with a nominal rate.
    """
    points = sorted(workloads, key=lambda workload: workload.share_of_capacity or 0.0)
    loads = [100 * (workload.share_of_capacity or 0.0) for workload in points]
    names = [router.name for router in points[-1].routers]
    figure, axes = panels(2, 2, 4.0 + _legend_height(names))
    styles = looks(names)
    for panel, metric in zip(axes, ("qos", "qos_per_gpu_s"), strict=True):
        for name in names:
            intervals = [workload.router(name).metrics[metric] for workload in points]
            mean, low, high = np.transpose([[interval.mean, interval.low, interval.high] for interval in intervals])
            band(panel, loads, mean, low, high, short(name), markersize=4, **styles[name])
        head(panel, metric_title(metric))
        panel.set_xlabel("load, % of the capacity")
        panel.set_xticks(loads, [f"{load:.0f}" for load in loads])
        panel.set_ylim(bottom=max(0.0, panel.get_ylim()[0]))
    figure.suptitle(f"{evaluation.scenario}, {points[0].arrivals} arrivals", x=0.01, ha="left")
    _legend_below(figure, axes[0])
    write_figure(figure, path)


def draw_distributions(path: Path, evaluation: Evaluation, workloads: Sequence[WorkloadResult]) -> None:
    """Draw distributions of latency per token and time to first token, as shares of the arrived requests.

    Args:
        path: PNG file to write.
        evaluation: where they come from.
        workloads: at most ``MOST_PANELS``, a row each. Some router finished some request on one of them.
    """
    slo_ms = 1e3 * evaluation.slo_s_per_token
    quantities: list[_Quantiles] = [
        ("latency per token, ms", 3 * slo_ms, lambda router: 1e3 * np.array(router.latency_quantiles_s)),
        ("time to first token, s", math.inf, lambda router: np.array(router.ttft_quantiles_s)),
    ]
    routers = [router for workload in workloads for router in workload.routers]
    drawn = [quantity for quantity in quantities if any(quantity[2](router).size for router in routers)]
    names = [router.name for router in workloads[0].routers]
    height = 2.0 * len(workloads) + 0.6 + _legend_height(names)
    figure, axes = panels(len(drawn) * len(workloads), len(drawn), height, sharex="col", sharey=True)
    styles = {name: {key: value for key, value in look.items() if key != "marker"} for name, look in looks(names).items()}
    for column, (title, most, of) in enumerate(drawn):
        mine = axes[column :: len(drawn)]
        known = [values for router in routers if (values := of(router)).size]
        low, high = min(values[0] for values in known), max(values[-1] for values in known)
        for panel, workload in zip(mine, workloads, strict=True):
            for router in workload.routers:
                values, finished = of(router), 100 * router.metrics["completion_rate"].mean
                shares = [*np.linspace(0, finished, values.size), finished]
                panel.plot([*values, 2 * high], shares, label=short(router.name), **styles[router.name])
            head(panel, workload.name)
        log_axis(mine[-1], 0.95 * low, max(min(1.05 * high, most), 2 * low))
        mine[-1].set_xlabel(title)
    for panel in axes[:: len(drawn)]:
        mark_slo(panel, slo_ms)
    axes[0].set_ylim(0, 101)
    figure.supylabel("arrived requests, %", fontsize=10)
    _legend_below(figure, axes[0])
    write_figure(figure, path)


def draw_failures(path: Path, workloads: Sequence[WorkloadResult]) -> None:
    """Draw the shares of late, dropped and refused requests, by router and workload.

    Args:
        path: PNG file to write.
        workloads: with the same routers, at most ``MOST_PANELS``, a panel each.
    """
    names = [router.name for router in workloads[0].routers]
    figure, axes = _panels_of_routers(len(workloads), names)
    for panel, workload in zip(axes, workloads, strict=True):
        left = np.zeros(len(names))
        for metric, colour in FAILURES.items():
            shares = np.array([100 * workload.router(name).metrics[metric].mean for name in names])
            panel.barh(range(len(names)), shares, left=left, color=colour, height=0.7, label=METRICS[metric].label)
            left += shares
        head(panel, workload.name)
        panel.grid(visible=False, axis="y")
    axes[0].set_xlim(left=0)
    label_below(axes, "arrived requests, %")
    _legend_below(figure, axes[0])
    write_figure(figure, path)


def draw_forest(path: Path, evaluation: Evaluation, workloads: Sequence[WorkloadResult]) -> None:
    """Draw differences of QoS to the baseline, by workload and in the mean over them, with intervals.

    Args:
        path: PNG file to write.
        evaluation: where they come from.
        workloads: at most ``MOST_PANELS``, a panel each beside the means.
    """
    every: list[tuple[str, str, dict[str, Interval]]] = [
        (f"mean over {summary.title}", summary.baseline, summary.difference) for summary in evaluation.summaries
    ]
    every += [(w.name, w.baseline, {router.name: router.difference for router in w.routers}) for w in workloads]
    names = list(every[0][2])
    figure, axes = _panels_of_routers(len(every), names)
    widest = max(abs(interval.mean) for _, _, intervals in every for interval in intervals.values())
    if widest > _WIDE:
        axes[0].set_xscale("symlog", linthresh=CLOSE)
        ticks = sorted([0.0, *(sign * size for size in (0.01, 0.1, 1.0) for sign in (-1, 1) if size <= 3 * widest)])
        axes[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes[0].set_xticks([], minor=True)
    for panel, (title, baseline, intervals) in zip(axes, every, strict=True):
        kinds = [_kind(intervals[name], is_baseline=name == baseline) for name in names]
        mean = np.array([intervals[name].mean for name in names])
        half = np.nan_to_num([intervals[name].half_width for name in names])
        for kind, style in _FOREST.items():
            places = np.flatnonzero([k == kind for k in kinds])
            panel.errorbar(mean[places], places, xerr=half[places], linestyle="none", markersize=4.5, elinewidth=1.6, **style)
        panel.axvline(0, color=GREY, linewidth=1)
        head(panel, title)
    figure.supxlabel("difference of QoS per arrived request to the baseline (diamond)", fontsize=10)
    write_figure(figure, path)


def _kind(interval: Interval, *, is_baseline: bool) -> str:
    """A key of ``_FOREST``."""
    if is_baseline:
        return "baseline"
    return "unclear" if not interval.excludes_zero else "better" if interval.mean > 0 else "worse"


def _panels_of_routers(n: int, names: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """Panels that share their axes, with a line for each router, from the top."""
    columns = 2 if n == 4 else min(3, n)
    height = math.ceil(n / columns) * (0.4 + 0.2 * len(names)) + 1.0
    figure, axes = panels(n, columns, height, sharex=True, sharey=True)
    axes[0].set_yticks(range(len(names)), [short(name) for name in names], fontsize=8)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    for panel in axes[::columns]:
        panel.tick_params(axis="y", labelsize=8)
    return figure, axes


def _legend_height(names: Sequence[str]) -> float:
    return 0.25 + 0.22 * math.ceil(len(names) / _LEGEND_COLUMNS)


def _legend_below(figure: Figure, axes: Axes) -> None:
    """The legend of one panel under all of them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=8.5, handlelength=2.8)
