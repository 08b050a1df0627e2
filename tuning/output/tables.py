"""Tables in Markdown, aligned so that they also read well in a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tuning.metrics.episode import ACTIVE_J, EXPENSES, METRICS, USUALLY_ZERO
from tuning.metrics.statistics import Bounds, Interval
from tuning.output.literal import markdown

ABSENT = "–"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, names: int = 1) -> str:
    """A Markdown table; the first ``names`` columns are aligned to the left, the others, numbers, to the right.

    Cells may hold any text; it is escaped.
    """
    header, rows = [markdown(cell) for cell in header], [[markdown(cell) for cell in row] for row in rows]
    widths = [max(3, *(len(row[i]) for row in (header, *rows))) for i in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.ljust(width) if i < names else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "| " + " | ".join(aligned) + " |"

    rule = "|" + "|".join("-" * (width + 1) + ("-" if i < names else ":") for i, width in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def metric_title(name: str) -> str:
    """A metric's column title, with its unit."""
    metric = METRICS[name]
    return f"{metric.label}, {metric.unit}" if metric.unit else metric.label


def columns_with_figures(columns: Sequence[str], rows: Sequence[Mapping[str, Interval]]) -> list[str]:
    """The metrics among ``columns`` to show; those that are usually zero only if a row has some, expenses if one knows them."""

    def shown(name: str) -> bool:
        means = [row[name].mean for row in rows if name in row]
        if name in USUALLY_ZERO:
            return any(mean > 0 for mean in means)
        return name not in (*EXPENSES, ACTIVE_J) or not all(math.isnan(mean) for mean in means)

    return [name for name in columns if shown(name)]


def show(name: str, value: float) -> str:
    """A metric's value as tables show it."""
    metric = METRICS[name]
    return ABSENT if math.isnan(value) else f"{metric.scale * value:.{metric.digits}f}"


def show_percent(interval: Interval) -> str:
    """A relative difference in per cent, ``mean ± half width``."""
    if math.isnan(interval.mean):
        return ABSENT
    mean = f"{100 * interval.mean:+.1f}"
    return mean if math.isnan(interval.half_width) else f"{mean} ± {100 * interval.half_width:.1f}"


def show_interval(name: str, interval: Interval, *, signed: bool = False) -> str:
    """``mean ± half width`` of a metric; the mean alone where there is no interval."""
    metric = METRICS[name]
    if math.isnan(interval.mean):
        return ABSENT
    mean = f"{metric.scale * interval.mean:{'+' if signed else ''}.{metric.digits}f}"
    return mean if math.isnan(interval.half_width) else f"{mean} ± {metric.scale * interval.half_width:.{metric.digits}f}"


def show_setting(value: Any) -> str:
    """A setting as tables show it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def show_known(value: float, form: str) -> str:
    """A number in this format; NaN is absent."""
    return ABSENT if math.isnan(value) else f"{value:{form}}"


def show_bounds(bounds: Bounds, *, signed: bool = False) -> str:
    """``estimate [low, high]`` of a QoS; the estimate alone where there is no interval."""
    form = "+.4f" if signed else ".4f"
    if math.isnan(bounds.low):
        return f"{bounds.estimate:{form}}"
    return f"{bounds.estimate:{form}} [{bounds.low:{form}}, {bounds.high:{form}}]"
