"""Routers on one workload, side by side: means, intervals and paired differences, as JSON and as a Markdown table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rllib_envs.workload.replay import episode_requests
from tuning.evaluation.matrix import CellResult
from tuning.evaluation.trace_notes import trace_json
from tuning.metrics.episode import EXPENSES, METRICS, metrics_of
from tuning.metrics.groups import GROUP_METRICS
from tuning.metrics.statistics import Interval, mean_interval, paired_difference, relative_difference
from tuning.output.literal import code, markdown
from tuning.output.tables import ABSENT, columns_with_figures, markdown_table, metric_title, show_interval, show_percent
from tuning.specs.routers import NamedRouter
from tuning.specs.workloads import NamedWorkload

_COLUMNS = (
    "violation_rate",
    "drop_rate",
    "rejected_rate",
    "confined_rate",
    "cancelled_rate",
    "failed_rate",
    "retried_rate",
    "too_long_rate",
    "latency_per_token_p50_s",
    "latency_per_token_p99_s",
    "ttft_p50_s",
    "qos_per_gpu_s",
    *EXPENSES,
    "class_fairness",
    "tenant_fairness",
)
PLAIN = "the best here of the heuristics that predict no impact"
NO_INTERVAL = Interval(mean=math.nan, half_width=math.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One router."""

    router: NamedRouter  # with the parameters it had here
    result: CellResult
    metrics: dict[str, Interval]  # over seeds
    difference: Interval  # of its QoS to the baseline's, paired by seed
    over_plain: Interval  # relative difference of its QoS to that of the plain heuristic, paired by seed; NaN without one
    groups: dict[str, dict[str, Interval]]  # title of a service class or tenant -> GROUP_METRICS, over seeds

    @property
    def qos(self) -> list[float]:
        """QoS of each seed."""
        return self.result.metrics["qos"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Routers on one workload, the best mean QoS first."""

    workload: NamedWorkload
    baseline: str  # name of the router that differences are to
    chosen: bool  # whether it was taken because it came out best, rather than asked for
    plain: str | None  # name of the best heuristic that predicts no impact; None where none ran
    rows: list[Row]

    def row(self, name: str) -> Row:
        """The row of the router with this name."""
        return next(row for row in self.rows if row.router.name == name)


def compare(
    workload: NamedWorkload, routers: Sequence[NamedRouter], results: Sequence[CellResult], baseline: str | None
) -> Comparison:
    """Put the results of a workload side by side.

    Args:
        workload: what they ran on.
        routers: as they ran, one for each result.
        results: all on the same seeds.
        baseline: name of the router to take differences to; None for the heuristic with the best mean QoS, or where there is
            none, the router with it.
    """
    qos = {router.name: result.metrics["qos"] for router, result in zip(routers, results, strict=True)}
    candidates = [router.name for router in routers if router.is_baseline] or list(qos)
    chosen = _best(candidates, qos) if baseline is None else baseline
    plain_ones = [router.name for router in routers if router.is_plain]
    plain = _best(plain_ones, qos) if plain_ones else None
    rows = [
        Row(
            router=router,
            result=result,
            metrics={name: mean_interval(values) for name, values in result.metrics.items()},
            difference=paired_difference(qos[router.name], qos[chosen]),
            over_plain=NO_INTERVAL if plain is None else relative_difference(qos[router.name], qos[plain]),
            groups={
                title: {name: mean_interval(values) for name, values in of_one.items()} for title, of_one in result.groups.items()
            },
        )
        for router, result in zip(routers, results, strict=True)
    ]
    rows.sort(key=lambda row: -row.metrics["qos"].mean)
    return Comparison(workload=workload, baseline=chosen, chosen=baseline is None, plain=plain, rows=rows)


def to_markdown(comparison: Comparison) -> str:
    """A heading, what the baseline is, and the table."""
    workload = comparison.workload
    rate = "" if workload.rate_rps is None else f" ({workload.rate_rps:.2f} requests/s)"
    seeds = len(comparison.rows[0].result.seeds)
    how = "the heuristic with the best mean QoS here" if comparison.chosen else "as asked for"
    known = metrics_of(workload.scenario)
    columns = columns_with_figures([name for name in _COLUMNS if name in known], [row.metrics for row in comparison.rows])
    header = ["router", "QoS", "difference", "over plain, %", *map(metric_title, columns)]
    cells = [_cells(row, comparison.baseline, columns) for row in comparison.rows]
    means = (
        f"Means over {seeds} seeds ± half of the 95 % interval. Difference: QoS to {code(comparison.baseline)}, {how}, by seed."
    )
    plain = "" if comparison.plain is None else f" Over plain: QoS relative to {code(comparison.plain)}, {PLAIN}."
    tables = [markdown_table(header, cells), *_group_tables(comparison)]
    return "\n\n".join([f"## {markdown(workload.name)}{rate}", means + plain, *tables])


def _group_tables(comparison: Comparison) -> list[str]:
    """A table for each service class and tenant of the scenario, with its title."""
    found: list[str] = []
    for title in comparison.rows[0].groups:
        groups = [row.groups[title] for row in comparison.rows]
        columns = columns_with_figures([name for name in GROUP_METRICS if name != "qos"], groups)
        cells = [
            [row.router.text, show_interval("qos", group["qos"]), *_means(group, columns)]
            for row, group in zip(comparison.rows, groups, strict=True)
        ]
        header = ["router", "QoS", *map(metric_title, columns)]
        found += [f"**{markdown(title[0].upper() + title[1:])}**", markdown_table(header, cells)]
    return found


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Everything in it, and the values of each seed."""
    workload = comparison.workload
    experts = [expert.name for expert in workload.scenario.experts]
    return {
        "workload": workload.name,
        "arrivals": workload.arrivals,
        "load": workload.load,
        "fault": workload.fault,
        "rate_rps": workload.rate_rps,
        "capacity_rps": workload.scenario.capacity_rps,
        "requests": episode_requests(workload.scenario.workload),
        "fingerprint": workload.scenario.fingerprint(),
        "trace": trace_json(workload.scenario),
        "baseline": comparison.baseline,
        "baseline_chosen": comparison.chosen,
        "plain": comparison.plain,
        "routers": [_row_json(row, experts) for row in comparison.rows],
    }


def _row_json(row: Row, experts: list[str]) -> dict[str, Any]:
    shares = [mean_interval(of_one).mean for of_one in zip(*row.result.shares, strict=True)]
    return {
        "router": row.router.name,
        "ran_as": row.router.text,
        "parameters": dict(row.router.parameters),
        "difference": interval_json(row.difference),
        "over_plain": interval_json(row.over_plain),
        "metrics": {name: interval_json(row.metrics[name]) | {"values": row.result.metrics[name]} for name in METRICS},
        "groups": {
            title: {name: interval_json(of_one[name]) | {"values": row.result.groups[title][name]} for name in of_one}
            for title, of_one in row.groups.items()
        },
        "routing_share": dict(zip([*experts, "drop"], shares, strict=True)),
        "latency_per_token_quantiles_s": row.result.latency_quantiles_s,
        "ttft_quantiles_s": row.result.ttft_quantiles_s,
    }


def interval_json(interval: Interval) -> dict[str, float]:
    """Mean and half width."""
    return {"mean": interval.mean, "half_width": interval.half_width}


def _cells(row: Row, baseline: str, columns: Sequence[str]) -> list[str]:
    difference = ABSENT if row.router.name == baseline else show_interval("qos", row.difference, signed=True)
    figures = _means(row.metrics, columns)
    return [row.router.text, show_interval("qos", row.metrics["qos"]), difference, show_percent(row.over_plain), *figures]


def _means(metrics: Mapping[str, Interval], columns: Sequence[str]) -> list[str]:
    """The means alone, as tables show them."""
    return [show_interval(name, Interval(mean=metrics[name].mean, half_width=math.nan)) for name in columns]


def _best(names: Sequence[str], qos: Mapping[str, Sequence[float]]) -> str:
    return max(names, key=lambda name: mean_interval(qos[name]).mean)
