"""The files of the measurement: a table, every world as CSV, and a figure."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tuning.headroom.measure import WorldHeadroom
from tuning.metrics.statistics import Interval, mean_interval, paired_difference
from tuning.output.plot_style import COLOURS, GREY, canvas, write_figure
from tuning.output.tables import markdown_table, show_interval
from tuning.run_dir.atomic import write_text

WORTHWHILE = 0.005
"""Headroom of QoS for which learning is worth the trouble."""

_SIGMAS = 1.96


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadroomRow:
    """A world in the table."""

    base: float  # QoS per arrived request
    realised: Interval  # improved less base, paired over the episodes
    expected: Interval  # the same by further futures at the decisions that changed
    compared: float  # share of the decisions
    changed: float


def summarise(result: WorldHeadroom) -> HeadroomRow:
    """The figures of one world."""
    episodes = result.episodes
    decisions = sum(e.decisions for e in episodes)
    error = math.sqrt(sum(e.gain_error**2 for e in episodes)) / len(episodes)
    return HeadroomRow(
        base=float(np.mean([e.base for e in episodes])),
        realised=paired_difference([e.improved for e in episodes], [e.base for e in episodes]),
        expected=Interval(mean=float(np.mean([e.gain for e in episodes])), half_width=_SIGMAS * error),
        compared=sum(e.compared for e in episodes) / decisions,
        changed=sum(e.changed for e in episodes) / decisions,
    )


def table(results: Sequence[WorldHeadroom]) -> str:
    """All worlds as Markdown, and their mean."""
    rows = [summarise(result) for result in results]
    header = ["world", "experts", "base QoS", "improved less base", "by further futures", "compared, %", "changed, %"]
    lines = [
        [
            *(result.world.name, str(result.experts), f"{row.base:.4f}", _signed(row.realised), _signed(row.expected)),
            *(f"{100 * share:.1f}" for share in (row.compared, row.changed)),
        ]
        for result, row in zip(results, rows, strict=True)
    ]
    expected = [row.expected for row in rows]
    mean = Interval(
        mean=float(np.mean([e.mean for e in expected])),
        half_width=math.sqrt(sum(e.half_width**2 for e in expected)) / len(expected),
    )
    realised = mean_interval([row.realised.mean for row in rows])
    shares = [f"{100 * np.mean([getattr(row, name) for row in rows]):.1f}" for name in ("compared", "changed")]
    base = f"{np.mean([row.base for row in rows]):.4f}"
    return markdown_table(header, [*lines, ["mean of the worlds", "", base, _signed(realised), _signed(mean), *shares]])


def conclusion(results: Sequence[WorldHeadroom]) -> str:
    """In how many worlds the headroom is worth the trouble, for sure or at all."""
    rows = [summarise(result) for result in results]
    surely = sum(row.expected.low >= WORTHWHILE for row in rows)
    about = sum(row.expected.mean >= WORTHWHILE for row in rows)
    return (
        f"Headroom of {WORTHWHILE:g} or more by further futures: {about} of {len(rows)} worlds, "
        f"{surely} of them with the whole interval."
    )


def write_report(folder: Path, results: Sequence[WorldHeadroom]) -> None:
    """Print the table, and write ``headroom.md``, ``headroom.csv`` and ``headroom.png``.

    Raises:
        InputError: a file that cannot be written.
    """
    text = f"{table(results)}\n\n{conclusion(results)}\n"
    print(text)
    write_text(folder / "headroom.md", text)
    write_text(folder / "headroom.csv", _csv(results))
    _draw(folder / "headroom.png", results)


def _signed(interval: Interval) -> str:
    return show_interval("qos", interval, signed=True)


def _csv(results: Sequence[WorldHeadroom]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *("fleet", "kind", "fleet_seed", "experts", "load", "arrivals", "told", "price", "shrink", "tau", "episode"),
            *("base", "improved", "gain", "gain_error", "decisions", "compared", "changed", "futures"),
        ]
    )
    for result in results:
        fleet, world = result.world.fleet, result.world
        for i, e in enumerate(result.episodes):
            writer.writerow(
                [fleet.name, fleet.kind, fleet.seed, result.experts, world.load, world.arrivals, world.told]
                + [f"{result.parameters[name]:g}" for name in ("price", "shrink", "tau")]
                + [i, *(f"{value:.6f}" for value in (e.base, e.improved, e.gain, e.gain_error))]
                + [e.decisions, e.compared, e.changed, e.futures]
            )
    return text.getvalue()


def _draw(path: Path, results: Sequence[WorldHeadroom]) -> None:
    """Each world's headroom by further futures, with its interval, from the largest down."""
    rows = sorted(((summarise(r).expected, r.world.name) for r in results), key=lambda pair: -pair[0].mean)
    figure, axes = canvas(1.2 + 0.28 * len(rows))
    means, widths = [e.mean for e, _ in rows], [e.half_width for e, _ in rows]
    axes.errorbar(means, range(len(rows)), xerr=widths, fmt="o", color=COLOURS[0], markersize=5, capsize=2)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.axvline(WORTHWHILE, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(rows)), [name for _, name in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(f"headroom of QoS per request over tuned impact-greedy; dashed: {WORTHWHILE:g}")
    write_figure(figure, path)
