"""Routers over several workloads: the mean difference between two, and the workload where it is worst.

The workloads of a seed are not independent (the same requests at other rates, or with another fault), so a router's QoS is first
averaged over them, seed by seed, and intervals are over seeds alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tuning.evaluation.comparison import NO_INTERVAL, Comparison, interval_json
from tuning.metrics.episode import EXPENSES, metrics_of
from tuning.metrics.statistics import Interval, mean_interval, paired_difference, relative_difference
from tuning.output.literal import code, markdown
from tuning.output.tables import ABSENT, markdown_table, metric_title, show_interval, show_percent
from tuning.specs.faults import NO_FAULT
from tuning.specs.routers import NamedRouter

_GPU = "qos_per_gpu_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """One router over all workloads, each counting alike."""

    router: NamedRouter  # as on the first workload; its parameters may differ on the others
    qos: Interval  # over seeds, of the mean over workloads
    qos_per_gpu_s: Interval
    expenses: dict[str, Interval]  # those of ``EXPENSES`` that the scenario has
    difference: Interval  # of that mean to the baseline's
    over_plain: Interval  # relative to the mean of the best plain heuristic of each workload; NaN where a workload has none
    differences: list[Interval]  # to the baseline on each workload
    worst: int  # the workload with the least of these


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Routers over the same workloads, the best mean QoS first."""

    title: str
    workloads: list[str]  # names
    baseline: str  # name of the one router that differences are to, on every workload
    chosen: bool  # whether it was taken because it came out best, rather than asked for
    rows: list[SummaryRow]


def summaries(comparisons: Sequence[Comparison], baseline: str | None) -> list[tuple[Summary, list[Comparison]]]:
    """Build the summaries: over all workloads if there are several, and over those with faults."""
    faulty = [c for c in comparisons if c.workload.fault != NO_FAULT]
    groups = [(f"all {len(comparisons)} workloads", list(comparisons))]
    if len(faulty) < len(comparisons):
        groups.append((f"the {len(faulty)} workloads with faults", faulty))
    return [(summarise(title, group, baseline), group) for title, group in groups if len(group) > 1]


def summarise(title: str, comparisons: Sequence[Comparison], baseline: str | None) -> Summary:
    """Sum up workloads on which the same routers met the same seeds.

    Args:
        title: what the workloads are.
        comparisons: one for each workload, one or more.
        baseline: name of the router to take differences to; None for the heuristic with the best mean over the workloads, or
            where there is none, the router with it.
    """
    first = comparisons[0]
    qos = {row.router.name: _mean(comparisons, row.router.name, "qos") for row in first.rows}
    candidates = [row.router.name for row in first.rows if row.router.is_baseline] or list(qos)
    chosen = max(candidates, key=lambda name: mean_interval(qos[name]).mean) if baseline is None else baseline
    plain = [c.row(c.plain).qos for c in comparisons if c.plain is not None]
    expenses = [name for name in EXPENSES if name in metrics_of(first.workload.scenario)]
    rows: list[SummaryRow] = []
    for row in first.rows:
        name = row.router.name
        differences = [paired_difference(c.row(name).qos, c.row(chosen).qos) for c in comparisons]
        rows.append(
            SummaryRow(
                router=row.router,
                qos=mean_interval(qos[name]),
                qos_per_gpu_s=mean_interval(_mean(comparisons, name, _GPU)),
                expenses={expense: mean_interval(_mean(comparisons, name, expense)) for expense in expenses},
                difference=paired_difference(qos[name], qos[chosen]),
                over_plain=relative_difference(qos[name], np.mean(plain, axis=0).tolist()) if plain else NO_INTERVAL,
                differences=differences,
                worst=int(np.argmin([np.nan_to_num(difference.mean, nan=np.inf) for difference in differences])),
            )
        )
    rows.sort(key=lambda row: -row.qos.mean)
    names = [c.workload.name for c in comparisons]
    return Summary(title=title, workloads=names, baseline=chosen, chosen=baseline is None, rows=rows)


def summary_markdown(summary: Summary) -> str:
    """A heading, what the baseline is, and the table."""
    how = "the heuristic with the best mean over them" if summary.chosen else "as asked for"
    text = (
        f"QoS of each seed, averaged over the workloads; means over seeds ± half of the 95 % interval. Difference: to "
        f"{code(summary.baseline)}, {how}; worst: on the workload where it is least. Over plain: relative to the best heuristic "
        "that predicts no impact, chosen for each workload."
    )
    header = [
        "router",
        "QoS",
        "difference",
        "worst difference",
        "on",
        "over plain, %",
        *map(metric_title, (_GPU, *summary.rows[0].expenses)),
    ]
    cells = [_cells(row, summary) for row in summary.rows]
    return "\n\n".join([f"## Mean over {markdown(summary.title)}", text, markdown_table(header, cells)])


def summary_json(summary: Summary) -> dict[str, Any]:
    """Everything in it."""
    return {
        "title": summary.title,
        "workloads": summary.workloads,
        "baseline": summary.baseline,
        "baseline_chosen": summary.chosen,
        "routers": [
            {
                "router": row.router.name,
                "qos": interval_json(row.qos),
                "qos_per_gpu_s": interval_json(row.qos_per_gpu_s),
                **{name: interval_json(expense) for name, expense in row.expenses.items()},
                "difference": interval_json(row.difference),
                "over_plain": interval_json(row.over_plain),
                "worst": {"workload": summary.workloads[row.worst], **interval_json(row.differences[row.worst])},
            }
            for row in summary.rows
        ],
    }


def _mean(comparisons: Sequence[Comparison], router: str, metric: str) -> list[float]:
    """Mean of a router's metric over the workloads, by seed."""
    return np.mean([c.row(router).result.metrics[metric] for c in comparisons], axis=0).tolist()


def _cells(row: SummaryRow, summary: Summary) -> list[str]:
    if row.router.name == summary.baseline:
        differences = [ABSENT, ABSENT, ABSENT]
    else:
        shown = [show_interval("qos", interval, signed=True) for interval in (row.difference, row.differences[row.worst])]
        differences = [*shown, summary.workloads[row.worst]]
    return [
        row.router.name,
        show_interval("qos", row.qos),
        *differences,
        show_percent(row.over_plain),
        show_interval(_GPU, row.qos_per_gpu_s),
        *(show_interval(name, expense) for name, expense in row.expenses.items()),
    ]
