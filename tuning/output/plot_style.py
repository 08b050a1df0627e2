"""Plot style that all figures share: canvas, colours and markers of routers, file format."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from tuning.run_dir.atomic import write_atomically

# Okabe and Ito's palette, told apart with any colour vision; its yellow is left out, it is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
WIDTH = 9.0  # inches
GREY = "0.35"  # grey of reference lines
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.2)))
_MARKERS = "os^Dv"
_LABEL_LENGTH = 32
_DPI = 150
_POWERS = range(-3, 6)  # of ten, on logarithmic axes

matplotlib.rcParams["text.parse_math"] = False  # a name with $ in it is drawn as it is, not as a formula


def canvas(height: float = 4.8) -> tuple[Figure, Axes]:
    """A figure with one panel.

    Args:
        height: in inches.
    """
    figure, (axes,) = panels(1, 1, height)
    return figure, axes


def panels(n: int, columns: int, height: float, **grid: Any) -> tuple[Figure, list[Axes]]:
    """A figure with n panels, row by row.

    Args:
        n: panels.
        columns: panels beside one another.
        height: of the figure, in inches.
        grid: what ``Figure.subplots`` takes beside; where panels share an axis, the outer ones alone have its labels.
    """
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    every: list[Axes] = np.ravel(figure.subplots(math.ceil(n / columns), columns, squeeze=False, **grid)).tolist()
    for axes in every[n:]:
        axes.remove()
    for axes in every[n - columns : n]:  # the last of each column, whether in the last row or not
        axes.tick_params(labelbottom=True)
    for axes in every[:n]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure, every[:n]


def save(figure: Figure, axes: Axes, path: Path) -> None:
    """Put the legend of one panel to its right and write the file."""
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9, handlelength=2.8)
    write_figure(figure, path)


def write_figure(figure: Figure, path: Path) -> None:
    """Write a PNG file."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from", UserWarning
        )  # of a name in another script: a box stands for it
        write_atomically(path, lambda staged: figure.savefig(staged, dpi=_DPI, metadata={"Software": None}))


def head(axes: Axes, text: str) -> None:
    """The title of one panel of several; that of a workload with a fault takes two lines."""
    lines = text.replace(" with ", "\nwith ")
    axes.set_title(lines, loc="left", fontsize=10, y=1.0)  # with y, which is where it would be anyway, it is not searched for


def band(axes: Axes, x: ArrayLike, middle: ArrayLike, low: ArrayLike, high: ArrayLike, label: str, **style: Any) -> None:
    """A line with the band of its intervals; no band where their ends are NaN.

    Args:
        axes: where to draw.
        x: (points,) and so are the next three.
        middle: the line.
        low: lower ends.
        high: upper ends.
        label: for the legend.
        style: of the line.
    """
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    axes.plot(x, middle, label=f" {label}" if label.startswith("_") else label, **style)  # legends leave out what begins with _


def log_axis(axes: Axes, low: float, high: float, *, vertical: bool = False) -> None:
    """Make the x axis (or the y axis) logarithmic, from ``low`` to ``high``, with plain numbers."""
    name = "y" if vertical else "x"
    bases = (1, 2, 3, 5) if high < 30 * low else (1, 3) if high < 300 * low else (1,)
    ticks = [base * 10.0**power for power in _POWERS for base in bases if low <= base * 10.0**power <= high]
    axes.set(**{f"{name}scale": "log", f"{name}lim": (low, high)})
    axis = axes.yaxis if vertical else axes.xaxis
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_ticks([], minor=True)


def mark_slo(axes: Axes, slo_ms: float) -> None:
    """A line at the SLO on an x axis of latencies per token in ms."""
    axes.axvline(slo_ms, color=GREY, linewidth=1)
    axes.annotate(f"SLO {slo_ms:g} ms", (slo_ms, 0), xytext=(4, 4), textcoords="offset points", color=GREY, fontsize=9)


def label_below(axes: Sequence[Axes], text: str) -> None:
    """The same label on the last panel of each column."""
    spec = axes[0].get_subplotspec()
    assert spec is not None
    for panel in axes[-spec.get_gridspec().ncols :]:
        panel.set_xlabel(text)


def looks(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """A colour, dash and marker for each router. They depend on the set of names only, not on results."""
    styles = zip(sorted(set(names)), cycle(COLOURS), cycle(_MARKERS), strict=False)
    return {
        name: {"color": colour, "marker": marker, "linestyle": _DASHES[i // len(COLOURS) % len(_DASHES)], "linewidth": 1.8}
        for i, (name, colour, marker) in enumerate(styles)
    }


def short(name: str) -> str:
    """A router's name as legends show it, at most 32 characters: a long path loses its first folders, ``bundle:…/c/router``.

    Where that is not enough it is the end of the name.
    """
    if len(name) <= _LABEL_LENGTH:
        return name
    kind, colon, path = name.partition(":")
    head, parts = f"{kind}{colon}…/", path.split("/")
    for i in range(1, len(parts)):
        tail = "/".join(parts[i:])
        if tail and len(head) + len(tail) <= _LABEL_LENGTH:
            return head + tail
    return "…" + name[1 - _LABEL_LENGTH :]
