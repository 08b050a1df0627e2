"""Figures of a report: results of evaluations and training runs, and the replay of one episode."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from scipy import stats

from tuning.metrics.episode import METRICS
from tuning.metrics.statistics import CONFIDENCE, Interval, interquartile_curve, mean_interval
from tuning.output.plot_style import COLOURS, GREY, band, canvas, head, log_axis, looks, mark_slo, panels, short, write_figure
from tuning.output.tables import metric_title
from tuning.reports.episode_replay import OUTCOMES, EpisodeReplay, Floats
from tuning.reports.run_folders import Evaluation, RouterResult, TrainingRun, WorkloadResult
from tuning.training.log import Iteration

MOST_PANELS = 9
"""Workloads that a figure has panels for, at most."""

CLOSE = 0.01
"""Differences of QoS up to here are drawn to scale, larger ones by their logarithm, if there are much larger ones."""

FAILURES = {"violation_rate": "#D55E00", "drop_rate": "0.25", "rejected_rate": "#E69F00"}
"""Metrics of requests that came to nothing -> colour."""

_WINDOW = 10  # iterations that training curves are means over, where there are many
_POINTS = 60  # of a training curve
_BINS = 12  # of the calibration
_SPANS = 40  # of an episode, in which routing shares are counted
_WIDE = 0.1  # a much larger difference of QoS than ``CLOSE``
_LEGEND_COLUMNS = 4
_ENDS = (
    ("in time, QoS below 1/3", "#B9DDCF"),
    ("1/3 to 2/3", "#4DB08C"),
    ("above 2/3", "#00694B"),
    ("late", "#D55E00"),
)
_LOST_COLOUR = "0.25"
_LOST_LANE = 0.025  # half of the height of the lane of those, as a share of the others'

_FOREST: dict[str, dict[str, Any]] = {
    "baseline": {"color": GREY, "marker": "d"},
    "unclear": {"color": GREY, "marker": "o"},
    "better": {"color": COLOURS[0], "marker": "o"},
    "worse": {"color": COLOURS[1], "marker": "o"},
}
_Quantiles = tuple[str, float, Callable[[RouterResult], Floats]]
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
    _label_below(axes, "environment steps")
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
    _label_below(axes, "arrived requests, %")
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


def draw_calibration(path: Path, replay: EpisodeReplay) -> None:
    """Draw predicted against realised values of the impact estimator: marginal QoS, and probability of being in time.

    Args:
        path: PNG file to write.
        replay: the episode.
    """
    figure, (left, right) = panels(2, 2, 4.6)
    expected = replay.expected("marginal")
    taken, true = replay.of_choice(expected)[replay.sent], replay.of_choice(replay.marginal)[replay.sent]
    every = {
        "every expert that could": (expected[replay.possible], replay.marginal[replay.possible], "0.55", "s"),
        "the expert chosen": (taken, true, COLOURS[0], "o"),
    }
    for label, (predicted, realised, colour, marker) in every.items():
        groups = _equal_groups(predicted)
        means = [float(predicted[group].mean()) for group in groups]
        found = [mean_interval(realised[group].tolist()) for group in groups]
        half = np.nan_to_num([interval.half_width for interval in found])
        left.errorbar(
            means, [i.mean for i in found], yerr=half, color=colour, marker=marker, markersize=4.5, linewidth=1.2, label=label
        )
    left.axline((0, 0), slope=1, color=GREY, linewidth=1, linestyle="--", label="ideal")
    left.set_xlabel("predicted marginal QoS")
    left.set_ylabel("realised marginal QoS, 95 % intervals")
    left.legend(frameon=False, fontsize=9)
    _draw_chances(right, replay)
    write_figure(figure, path)


def _draw_chances(axes: Axes, replay: EpisodeReplay) -> None:
    """Draw the share of requests in time against its predicted probability."""
    chance = replay.of_choice(replay.expected("in_time"))[replay.sent]
    in_time = replay.outcome[replay.sent] == OUTCOMES.index("in time")
    edges = np.linspace(0, 1, 11)
    bins = np.clip(np.digitize(chance, edges) - 1, 0, edges.size - 2)
    for i in np.unique(bins):
        hits, n = int(in_time[bins == i].sum()), int((bins == i).sum())
        interval = stats.binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
        share, x = hits / n, float(chance[bins == i].mean())
        error = [[max(share - interval.low, 0.0)], [max(interval.high - share, 0.0)]]
        axes.errorbar(
            100 * x, 100 * share, yerr=100 * np.array(error), color=COLOURS[0], marker="o", markersize=4.5, linewidth=1.2
        )
        axes.annotate(
            f"{n:,}", (100 * x, 100 * share), xytext=(-7, 0), textcoords="offset points", ha="right", va="center", fontsize=8
        )
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=1, linestyle="--", label="ideal")
    axes.set_xlim(-2, 104)
    axes.set_ylim(-4, 104)
    axes.set_xlabel("predicted chance to be in time, %")
    axes.set_ylabel("requests in time, %, with their number")
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _equal_groups(values: Floats) -> list[NDArray[np.int64]]:
    """The indices in groups of like values and about equal size."""
    return [group for group in np.array_split(np.argsort(values, kind="stable"), _BINS) if group.size]


def draw_shares_over_time(path: Path, replay: EpisodeReplay) -> None:
    """Draw the shares of arrivals sent to each expert and dropped, over the episode.

    Args:
        path: PNG file to write.
        replay: the episode.
    """
    arrival_s, names = replay.records.arrival_s, [*replay.experts, "drop"]
    spans = max(1, min(_SPANS, arrival_s.size // 20))
    edges = np.linspace(0, float(arrival_s[-1]), spans + 1)
    counts = np.stack([np.histogram(arrival_s[replay.choice == e], edges)[0] for e in range(len(names))])
    shares = 100 * counts / np.maximum(counts.sum(axis=0), 1)
    figure, axes = canvas(3.8)
    colours = [*_expert_colours(len(names) - 1), "0.25"]
    axes.stackplot(
        np.repeat(edges, 2)[1:-1], np.repeat(shares, 2, axis=1), labels=names, colors=colours, linewidth=0.4, edgecolor="white"
    )
    axes.axvspan(*replay.window_s, facecolor="none", edgecolor="black", linewidth=1.4)
    axes.set_xlim(0, edges[-1])
    axes.set_ylim(0, 100)
    axes.set_xlabel("time of arrival, s; framed: the minute shown below")
    axes.set_ylabel("requests, %")
    axes.grid(visible=False)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
    write_figure(figure, path)


def _expert_colours(n: int) -> list[str]:
    return [COLOURS[:-1][i % (len(COLOURS) - 1)] for i in range(n)]


def draw_timeline(path: Path, replay: EpisodeReplay) -> None:
    """Draw the minute: a lane for each expert, a bar for each request from arrival to finish, a tick for each lost one.

    Args:
        path: PNG file to write.
        replay: the episode.
    """
    start_s, end_s = replay.window_s
    records, ends = replay.records, _ends(replay)
    finish_s = np.where(np.isnan(records.finish_s), records.arrival_s, records.finish_s)
    shown = (records.arrival_s < end_s) & (finish_s >= start_s)
    served = shown & ~np.isnan(records.finish_s)
    figure, axes = canvas(9.5)
    base, centres = 0.0, list[float]()
    for expert in range(len(replay.experts)):
        mine = np.flatnonzero(served & (replay.choice == expert))
        rows, height = _rows(records.arrival_s[mine], finish_s[mine])
        boxes = [_box(*box) for box in zip(records.arrival_s[mine], finish_s[mine], base + rows, strict=True)]
        colours = [_ENDS[end][1] for end in ends[mine]]
        axes.add_collection(PolyCollection(boxes, facecolors=colours, edgecolors="white", linewidths=0.3))
        centres.append(base + height / 2)
        base += height + 2
        axes.axhline(base - 1, color="0.8", linewidth=0.8)
    lost = shown & ~served
    lane = base * (1 + _LOST_LANE)
    axes.plot(records.arrival_s[lost], np.full(int(lost.sum()), lane), "|", color=_LOST_COLOUR, markersize=12)
    axes.set_yticks([*centres, lane], [*replay.experts, "dropped\nor refused"])
    axes.set_ylim(base * (1 + 2 * _LOST_LANE), -1)
    axes.set_xlim(start_s, end_s)
    axes.set_xlabel("time, s")
    axes.grid(visible=False)
    handles = [Patch(color=colour, label=label) for label, colour in _ENDS]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(_ENDS), frameon=False, fontsize=9)
    write_figure(figure, path)


def _ends(replay: EpisodeReplay) -> NDArray[np.int64]:
    """(M,) indices of ``_ENDS``, of the requests that were served."""
    grade = np.digitize(replay.records.qos, [1 / 3, 2 / 3])
    return np.where(replay.records.late, len(_ENDS) - 1, grade)


def _rows(begin: Floats, end: Floats) -> tuple[NDArray[np.int64], int]:
    """A row for each bar, the lowest that is free when it begins (they come in order), and how many rows there are."""
    free_at: list[float] = []
    rows = np.empty(begin.size, np.int64)
    for i, (b, e) in enumerate(zip(begin.tolist(), end.tolist(), strict=True)):
        row = next((k for k, free in enumerate(free_at) if free <= b), len(free_at))
        free_at[row : row + 1] = [e]
        rows[i] = row
    return rows, max(len(free_at), 4)


def _box(begin: float, end: float, row: float) -> list[tuple[float, float]]:
    return [(begin, row), (end, row), (end, row + 1), (begin, row + 1)]


def _legend_height(names: Sequence[str]) -> float:
    return 0.25 + 0.22 * math.ceil(len(names) / _LEGEND_COLUMNS)


def _label_below(axes: Sequence[Axes], text: str) -> None:
    """The same label on the last panel of each column."""
    spec = axes[0].get_subplotspec()
    assert spec is not None
    for panel in axes[-spec.get_gridspec().ncols :]:
        panel.set_xlabel(text)


def _legend_below(figure: Figure, axes: Axes) -> None:
    """The legend of one panel under all of them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=_LEGEND_COLUMNS, frameon=False, fontsize=8.5, handlelength=2.8)
