"""Draw the learning curve of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tuning.output.plot_style import write_figure
from tuning.training.log import Iteration

_WINDOW = 10  # iterations that the strong lines are means over
_COLOURS = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9")


def draw_curve(path: Path, records: Sequence[Iteration], title: str) -> None:
    """Draw QoS, late and dropped shares over the steps, and differences to the best heuristic if there are any.

    Each iteration is faint, the mean over the last ten strong; differences have bars that span their 95 % confidence intervals.
    """
    compared = [record for record in records if record.validation]
    figure = Figure(figsize=(9, 7.6 if compared else 5.4), layout="constrained")
    FigureCanvasAgg(figure)
    rows: list[Axes] = list(
        figure.subplots(3 if compared else 2, 1, sharex=True, height_ratios=[2, 1, 2][: 3 if compared else 2])
    )
    rows[0].set_title(title, loc="left")
    _draw_series(rows[0], records, {"QoS": ("#0072B2", [record.qos for record in records])})
    rows[0].set_ylabel("QoS per decision, training")
    late, dropped = [100 * record.late_share for record in records], [100 * record.drop_share for record in records]
    _draw_series(rows[1], records, {"late": ("#D55E00", late), "dropped": ("#009E73", dropped)})
    rows[1].set_ylabel("share of requests, %")
    rows[1].legend(frameon=False, ncols=2)
    if compared:
        _draw_differences(rows[2], compared)
    rows[-1].set_xlabel("environment steps")
    rows[-1].xaxis.set_major_formatter("{x:,.0f}")
    for axes in rows:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9", linewidth=0.8)
    write_figure(figure, path)


def _draw_series(axes: Axes, records: Sequence[Iteration], series: dict[str, tuple[str, list[float]]]) -> None:
    steps = [record.steps for record in records]
    window = min(_WINDOW, max(len(records), 1))
    for label, (colour, values) in series.items():
        axes.plot(steps, values, color=colour, alpha=0.3, linewidth=1)
        axes.plot(steps[window - 1 :], _smoothed(values, window), color=colour, linewidth=2, label=label)


def _draw_differences(axes: Axes, records: Sequence[Iteration]) -> None:
    axes.axhline(0, color="0.4", linewidth=1)
    loads = list(records[0].validation or {})
    steps = [record.steps for record in records]
    for load, colour in zip(loads, _COLOURS, strict=False):
        found = [(record.validation or {})[load] for record in records]
        axes.errorbar(
            steps,
            [d["mean"] for d in found],
            yerr=[d["error"] for d in found],
            color=colour,
            label=load,
            capsize=2,
            linewidth=1.5,
        )
    axes.set_ylabel("QoS over tuned impact-greedy")
    axes.legend(frameon=False, ncols=len(loads))


def _smoothed(values: Sequence[float], window: int) -> list[float]:
    return [sum(values[i : i + window]) / window for i in range(len(values) - window + 1)]
