"""The figures of comparisons: QoS against load, differences by workload, and how latency per token is distributed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tuning.comparison import Comparison
from tuning.statistics import Interval
from tuning.storage import write_atomically
from tuning.summary import Summary, SummaryRow

# Okabe and Ito's palette, told apart with any colour vision; its yellow is left out, it is faint on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)))
_MARKERS = "os^Dv"
_TICKS_MS = [base * 10.0**power for power in range(-1, 6) for base in (1, 2, 3, 5)]
_LABEL_LENGTH = 32
_FEW = 4
_DPI = 150


def draw_qos_against_load(path: Path, comparisons: Sequence[Comparison]) -> None:
    """One line a router over the loads of one arrival process, with a band of the 95 % interval of the mean.

    Args:
        path: PNG file to write.
        comparisons: at least two, each with a nominal rate.
    """
    points = sorted(comparisons, key=_rate_rps)
    figure, axes = _canvas()
    scenario = points[0].workload.scenario
    capacity = scenario.capacity_rps or 1.0
    loads = np.array([100 * _rate_rps(point) / capacity for point in points])
    styles = _styles(points)
    for name in _by_last_qos(points):
        intervals = [{row.router.name: row.metrics["qos"] for row in point.rows}[name] for point in points]
        mean = np.array([interval.mean for interval in intervals])
        half = np.nan_to_num([interval.half_width for interval in intervals])
        colour = styles[name]["color"]
        axes.fill_between(loads, mean - half, mean + half, color=colour, alpha=0.15, linewidth=0)
        axes.plot(loads, mean, label=_label(name), markersize=5, **styles[name])
    axes.set_xlabel(f"load, % of the capacity ({capacity:.1f} requests/s)")
    axes.set_ylabel("QoS per arrived request")
    axes.set_title(f"{scenario.name}, {points[0].workload.arrivals} arrivals", loc="left")
    _save(figure, axes, path)


def draw_differences(path: Path, summary: Summary, comparisons: Sequence[Comparison]) -> None:
    """Paired difference of QoS to the summary's baseline, with its 95 % interval, on each workload and in the mean over them.

    Shown are the routers that were trained and the heuristics that predict impact, or the few best where there are none of these:
    beside others, whose differences are many times as large, theirs could not be seen.

    Args:
        path: PNG file to write.
        summary: of ``comparisons``, with two routers or more.
        comparisons: the workloads, from top to bottom.
    """
    rows = _rows_to_show(summary)
    labels = [*(comparison.workload.name for comparison in comparisons), "mean over workloads"]
    figure, axes = _canvas(height=1.6 + 0.11 * (len(rows) + 1) * len(labels))
    styles = _styles(comparisons)
    places = np.array([*range(len(comparisons)), len(comparisons) + 0.3])  # the mean a little apart
    for i, row in enumerate(rows):
        offset = 0.7 * ((i + 0.5) / len(rows) - 0.5)
        intervals: list[Interval] = [*row.differences, row.difference]
        style = {key: value for key, value in styles[row.router.name].items() if key in ("color", "marker")}
        axes.errorbar(
            [interval.mean for interval in intervals],
            places + offset,
            xerr=np.nan_to_num([interval.half_width for interval in intervals]),
            label=_label(row.router.name),
            linestyle="none",
            markersize=4.5,
            elinewidth=1.4,
            **style,
        )
    axes.axvline(0, color="0.35", linewidth=1)
    axes.axhline(len(comparisons) - 0.35, color="0.6", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_yticks(places, labels)
    axes.set_ylim(places[-1] + 0.6, -0.6)
    axes.set_xlabel(f"difference of QoS per arrived request to {_label(summary.baseline)}")
    axes.set_title(f"{comparisons[0].workload.scenario.name}, {summary.title}", loc="left")
    _save(figure, axes, path)


def _rows_to_show(summary: Summary) -> list[SummaryRow]:
    """The rows of a figure of differences, the best first."""
    others = [row for row in summary.rows if row.router.name != summary.baseline]
    close = [row for row in others if row.router.heuristic is None or (row.router.is_baseline and not row.router.is_plain)]
    return close or others[:_FEW]


def draw_latency(path: Path, comparison: Comparison) -> None:
    """Share of the arrived requests that finished within each latency per token; its limit is the share that ever finished.

    Args:
        path: PNG file to write.
        comparison: one workload.
    """
    figure, axes = _canvas()
    scenario = comparison.workload.scenario
    slo_ms = 1e3 * scenario.slo_s_per_token
    styles = _styles([comparison])
    low, high = _shown_range_ms(comparison)
    for row in comparison.rows:
        latency_ms = 1e3 * np.array(row.result.latency_quantiles_s)
        finished = row.metrics["completion_rate"].mean
        share = np.linspace(0, finished, latency_ms.size)
        style = {key: value for key, value in styles[row.router.name].items() if key != "marker"}
        axes.plot(
            [*latency_ms, max([high, *latency_ms[-1:]])],
            100 * np.array([*share, finished]),
            label=_label(row.router.name),
            **style,
        )
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = [tick for tick in _TICKS_MS if low <= tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.axvline(slo_ms, color="0.35", linewidth=1)
    axes.annotate(f"SLO {slo_ms:g} ms", (slo_ms, 0), xytext=(4, 4), textcoords="offset points", color="0.35", fontsize=9)
    axes.set_ylim(0, 101)
    axes.set_xlabel("latency per token, ms")
    axes.set_ylabel("arrived requests finished within, %")
    axes.set_title(f"{scenario.name}, {comparison.workload.name}", loc="left")
    _save(figure, axes, path)


def _canvas(height: float = 4.8) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, axes: Axes, path: Path) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, handlelength=2.8)
    write_atomically(path, lambda aside: figure.savefig(aside, dpi=_DPI, metadata={"Software": None}))


def _styles(comparisons: Sequence[Comparison]) -> dict[str, dict[str, Any]]:
    """A look for each router that does not depend on how it fared: the same in every figure of an evaluation."""
    names = sorted({row.router.name for comparison in comparisons for row in comparison.rows})
    looks = zip(names, cycle(_COLOURS), cycle(_MARKERS), strict=False)
    return {
        name: {"color": colour, "marker": marker, "linestyle": _DASHES[i // len(_COLOURS) % len(_DASHES)], "linewidth": 1.8}
        for i, (name, colour, marker) in enumerate(looks)
    }


def _by_last_qos(points: Sequence[Comparison]) -> list[str]:
    """Routers in the order in which their lines end, so that the legend reads as the figure does."""
    return [row.router.name for row in points[-1].rows]


def _shown_range_ms(comparison: Comparison) -> tuple[float, float]:
    """From the fastest requests to three times the SLO: what is later than that is only late."""
    fastest = [row.result.latency_quantiles_s[0] for row in comparison.rows if row.result.latency_quantiles_s]
    slo_s = comparison.workload.scenario.slo_s_per_token
    return 1e3 * min([*fastest, slo_s / 2]) * 0.95, 1e3 * slo_s * 3


def _rate_rps(comparison: Comparison) -> float:
    rate = comparison.workload.rate_rps
    assert rate is not None
    return rate


def _label(name: str) -> str:
    return name if len(name) <= _LABEL_LENGTH else "…" + name[1 - _LABEL_LENGTH :]
