"""The figures of comparisons: QoS against load, differences by workload, and how latency per token is distributed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator

from tuning.evaluation.comparison import Comparison
from tuning.evaluation.summary import Summary, SummaryRow
from tuning.metrics.statistics import Interval
from tuning.output.plot_style import GREY, band, canvas, log_axis, looks, mark_slo, save, short

_FEW = 4


def draw_qos_against_load(path: Path, comparisons: Sequence[Comparison]) -> None:
    """Draw QoS over the loads of one arrival process, a line a router, with the 95 % interval of the mean.

    Args:
        path: PNG file to write.
        comparisons: at least two, each with a nominal rate.
    """
    points = sorted(comparisons, key=_rate_rps)
    figure, axes = canvas()
    scenario = points[0].workload.scenario
    capacity = scenario.capacity_rps or 1.0
    loads = np.array([100 * _rate_rps(point) / capacity for point in points])
    styles = _styles(points)
    for name in _by_last_qos(points):
        intervals = [{row.router.name: row.metrics["qos"] for row in point.rows}[name] for point in points]
        mean = np.array([interval.mean for interval in intervals])
        half = np.nan_to_num([interval.half_width for interval in intervals])
        band(axes, loads, mean, mean - half, mean + half, short(name), markersize=5, **styles[name])
    axes.set_xlabel(f"load, % of the capacity ({capacity:.1f} requests/s)")
    axes.set_ylabel("QoS per arrived request")
    axes.set_title(f"{scenario.name}, {points[0].workload.arrivals} arrivals", loc="left")
    save(figure, axes, path)


def draw_differences(path: Path, summary: Summary, comparisons: Sequence[Comparison]) -> None:
    """Draw paired differences of QoS to the summary's baseline with 95 % intervals, by workload and in the mean.

    It shows trained routers and heuristics that predict impact, or the few best routers if there are none. The differences of
    other routers are many times as large and would hide theirs.

    Args:
        path: PNG file to write.
        summary: of ``comparisons``, with two routers or more.
        comparisons: the workloads, from top to bottom.
    """
    rows = _rows_to_show(summary)
    labels = [*(comparison.workload.name for comparison in comparisons), "mean over workloads"]
    figure, axes = canvas(height=1.6 + 0.11 * (len(rows) + 1) * len(labels))
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
            label=short(row.router.name),
            linestyle="none",
            markersize=4.5,
            elinewidth=1.4,
            **style,
        )
    axes.axvline(0, color=GREY, linewidth=1)
    axes.axhline(len(comparisons) - 0.35, color="0.6", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_yticks(places, labels)
    axes.set_ylim(places[-1] + 0.6, -0.6)
    axes.set_xlabel(f"difference of QoS per arrived request to {short(summary.baseline)}")
    axes.set_title(f"{comparisons[0].workload.scenario.name}, {summary.title}", loc="left")
    save(figure, axes, path)


def _rows_to_show(summary: Summary) -> list[SummaryRow]:
    """The rows of a figure of differences, the best first."""
    others = [row for row in summary.rows if row.router.name != summary.baseline]
    close = [row for row in others if row.router.heuristic is None or (row.router.is_baseline and not row.router.is_plain)]
    return close or others[:_FEW]


def draw_latency(path: Path, comparison: Comparison) -> None:
    """Draw the distribution of latency per token, as a share of arrived requests; its limit is the share that finished.

    Args:
        path: PNG file to write.
        comparison: one workload.
    """
    figure, axes = canvas()
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
            label=short(row.router.name),
            **style,
        )
    log_axis(axes, low, high)
    mark_slo(axes, slo_ms)
    axes.set_ylim(0, 101)
    axes.set_xlabel("latency per token, ms")
    axes.set_ylabel("arrived requests finished within, %")
    axes.set_title(f"{scenario.name}, {comparison.workload.name}", loc="left")
    save(figure, axes, path)


def _styles(comparisons: Sequence[Comparison]) -> dict[str, dict[str, Any]]:
    return looks(row.router.name for comparison in comparisons for row in comparison.rows)


def _by_last_qos(points: Sequence[Comparison]) -> list[str]:
    """Routers in the order in which their lines end, so that the legend reads as the figure does."""
    return [row.router.name for row in points[-1].rows]


def _shown_range_ms(comparison: Comparison) -> tuple[float, float]:
    """The axis range: from the fastest requests to three times the SLO."""
    fastest = [row.result.latency_quantiles_s[0] for row in comparison.rows if row.result.latency_quantiles_s]
    slo_s = comparison.workload.scenario.slo_s_per_token
    return 1e3 * min([*fastest, slo_s / 2]) * 0.95, 1e3 * slo_s * 3


def _rate_rps(comparison: Comparison) -> float:
    rate = comparison.workload.rate_rps
    assert rate is not None
    return rate
