"""Draw docs/figures/overview.png, the picture of the whole in README.

Run ``python docs/figures/overview.py`` from the repository root.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text

from tuning.output.plot_style import COLOURS, GREY, WIDTH, write_figure

_HEIGHT = 2.65  # inches
_BLUE, _ORANGE, _GREEN = COLOURS[:3]


class Box(NamedTuple):
    """A part of the system."""

    left: float  # in inches, as are the others
    bottom: float
    width: float
    height: float
    title: str
    lines: str
    colour: str


REQUESTS = Box(0.1, 1.15, 1.25, 1.15, "Requests", "Poisson arrivals,\nbursts, real traces", GREY)
PREDICTORS = Box(1.85, 1.15, 1.7, 1.15, "Predictors", "quality and length\non each expert,\nfrom the prompt's text", _GREEN)
ROUTER = Box(4.05, 1.15, 2.1, 1.15, "Router", "impact on those in flight,\ncongestion price,\ngraph encoder", _BLUE)
EXPERTS = Box(6.85, 1.15, 2.0, 1.15, "Experts", "vLLM engines: queue,\ncontinuous batch,\nKV blocks", _ORANGE)
BOXES = (REQUESTS, PREDICTORS, ROUTER, EXPERTS)


def draw() -> tuple[Figure, list[tuple[Box, list[Text]]]]:
    """The figure, and the texts of each box."""
    figure = Figure(figsize=(WIDTH, _HEIGHT))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, _HEIGHT))
    axes.axis("off")
    texts = [(box, _box(axes, box)) for box in BOXES]
    for before, after in pairwise(BOXES):
        _arrow(axes, (before.left + before.width, 1.72), (after.left, 1.72), GREY)
    axes.text(6.5, 1.82, "one expert,\nor drop", ha="center", va="bottom", fontsize=7.5, color=GREY)
    _below(axes, 0.78, EXPERTS, ROUTER, "telemetry: running and waiting requests, free KV blocks", GREY)
    _below(axes, 0.32, EXPERTS, ROUTER, "training: QoS, and the counterfactual of every action", _BLUE)
    axes.text(EXPERTS.left + EXPERTS.width / 2, 2.42, "simulated, iteration by iteration", ha="center", fontsize=8, color=_ORANGE)
    axes.text(ROUTER.left + ROUTER.width / 2, 2.42, "trained, or a heuristic", ha="center", fontsize=8, color=_BLUE)
    axes.text(
        PREDICTORS.left + PREDICTORS.width / 2, 2.42, "fitted to prompts, or synthetic", ha="center", fontsize=8, color=_GREEN
    )
    return figure, texts


def _box(axes: Axes, box: Box) -> list[Text]:
    edge = FancyBboxPatch(
        (box.left, box.bottom),
        box.width,
        box.height,
        boxstyle="round,pad=0,rounding_size=0.08",
        fc="white",
        ec=box.colour,
        lw=1.6,
    )
    axes.add_patch(edge)
    middle = box.left + box.width / 2
    return [
        axes.text(middle, box.bottom + box.height - 0.24, box.title, ha="center", va="center", fontsize=11, weight="bold"),
        axes.text(middle, box.bottom + box.height / 2 - 0.16, box.lines, ha="center", va="center", fontsize=8.5),
    ]


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 1.4, "shrinkA": 1, "shrinkB": 1})


def _below(axes: Axes, height: float, source: Box, target: Box, label: str, colour: str) -> None:
    """An arrow back from one box to another, below both: the lower, the further apart its ends."""
    inset = 0.35 * height
    right, left = source.left + source.width - 0.3 - inset, target.left + 0.3 + inset
    axes.plot([right, right, left], [source.bottom, height, height], color=colour, lw=1.4, solid_joinstyle="round")
    _arrow(axes, (left, height), (left, target.bottom), colour)
    axes.text((left + right) / 2, height + 0.04, label, ha="center", va="bottom", fontsize=8, color=colour)


if __name__ == "__main__":
    write_figure(draw()[0], Path(__file__).with_suffix(".png"))
