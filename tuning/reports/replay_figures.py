"""Figures of the replay of one episode in a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Patch
from numpy.typing import NDArray
from scipy import stats

from rllib_envs.service_terms import terms_of
from rllib_envs.viewer import STATUSES
from tuning.metrics.statistics import CONFIDENCE, mean_interval
from tuning.output.plot_style import COLOURS, GREY, canvas, panels, write_figure
from tuning.reports.episode_replay import OUTCOMES, EpisodeReplay, Floats

_BINS = 12  # of the calibration
_SPANS = 40  # of an episode, in which routing shares are counted
_ENDS = (
    ("in time, score below 1/3", "#B9DDCF"),
    ("1/3 to 2/3", "#4DB08C"),
    ("above 2/3", "#00694B"),
    ("late", "#D55E00"),
)
_LOST_COLOUR = "0.25"
_STRIP = 0.008  # height of the strips of status, as a share of all lanes
_LOST_LANE = 0.025  # half of the height of the lane of those, as a share of the others'


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


def draw_timeline(path: Path, replay: EpisodeReplay, *, by_class: bool = False) -> None:
    """Draw the minute: a lane for each expert, a bar for each request from arrival to finish, a tick for each lost one.

    A strip above each lane has what the expert is doing.

    Args:
        path: PNG file to write.
        replay: the episode.
        by_class: colour bars by service class, not by outcome.
    """
    start_s, end_s = replay.window_s
    records = replay.records
    kind, kinds = _classes(replay) if by_class else (_ends(replay), _ENDS)
    finish_s = np.where(np.isnan(records.finish_s), records.arrival_s, records.finish_s)
    shown = (records.arrival_s < end_s) & (finish_s >= start_s)
    served = shown & ~np.isnan(records.finish_s)
    figure, axes = canvas(9.5)
    lanes = [np.flatnonzero(served & (replay.choice == expert)) for expert in range(len(replay.experts))]
    packed = [_rows(records.arrival_s[mine], finish_s[mine]) for mine in lanes]
    strip = max(_STRIP * sum(height for _, height in packed), 0.5)
    base, centres = strip + 0.5, list[float]()
    for expert, (mine, (rows, height)) in enumerate(zip(lanes, packed, strict=True)):
        boxes = [_box(*box) for box in zip(records.arrival_s[mine], finish_s[mine], base + rows, strict=True)]
        colours = [kinds[k][1] for k in kind[mine]]
        axes.add_collection(PolyCollection(boxes, facecolors=colours, edgecolors="white", linewidths=0.3))
        _draw_status(axes, replay, expert, base - strip - 0.25, strip)
        centres.append(base + height / 2)
        base += height + strip + 2
        axes.axhline(base - strip - 1, color="0.8", linewidth=0.8)
    lost = shown & ~served
    lane = base * (1 + _LOST_LANE)
    for k in np.unique(kind[lost]):
        at_s = records.arrival_s[lost & (kind == k)]
        axes.plot(at_s, np.full(at_s.size, lane), "|", color=kinds[k][1] if by_class else _LOST_COLOUR, markersize=12)
    axes.set_yticks([*centres, lane], [*replay.experts, "dropped\nor refused"])
    axes.set_ylim(base * (1 + 2 * _LOST_LANE), -1)
    axes.set_xlim(start_s, end_s)
    axes.set_xlabel("time, s")
    axes.grid(visible=False)
    handles = [Patch(color=colour, label=label) for label, colour in (*kinds, *STATUSES.items())]
    figure.legend(handles=handles, loc="outside lower left", ncols=7, frameon=False, fontsize=9)
    write_figure(figure, path)


def _draw_status(axes: Axes, replay: EpisodeReplay, expert: int, top: float, height: float) -> None:
    """Draw a strip of what an expert is doing, as it was when requests arrived."""
    arrival_s, status = replay.records.arrival_s, replay.status[:, expert]
    starts = np.flatnonzero(np.diff(status, prepend=-1))
    ends_s = [*arrival_s[starts[1:]], arrival_s[-1]]
    spans = [(float(arrival_s[i]), float(end_s - arrival_s[i])) for i, end_s in zip(starts, ends_s, strict=True)]
    axes.broken_barh(spans, (top, height), facecolors=[list(STATUSES.values())[k] for k in status[starts]])


def _classes(replay: EpisodeReplay) -> tuple[NDArray[np.int64], Sequence[tuple[str, str]]]:
    """(M,) index of each request's class, and name and colour of each class."""
    return replay.records.service.astype(np.int64), list(zip(replay.classes, _expert_colours(len(replay.classes)), strict=True))


def _ends(replay: EpisodeReplay) -> NDArray[np.int64]:
    """(M,) indices of ``_ENDS``, of the requests that were served."""
    weight = terms_of(replay.workload.scenario)["weight"][replay.records.service]
    grade = np.digitize(replay.records.qos / weight, [1 / 3, 2 / 3])
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
