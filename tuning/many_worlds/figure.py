"""The figure of the measurement: paired differences of QoS by kind of world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from tuning.many_worlds.measure import TUNED, UNTUNED, WorldResult
from tuning.many_worlds.summary import CLOSE, difference
from tuning.output.plot_style import COLOURS, GREY, head, panels, write_figure

_LINEAR = 0.003  # differences up to this are drawn to scale, larger ones logarithmically
_TICKS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def draw_differences(path: Path, kinds: Mapping[str, Sequence[WorldResult]]) -> None:
    """Draw each world's difference as a dot, and the mean and the 5th to 95th percentile of each kind of world.

    Args:
        path: PNG file to write.
        kinds: worlds by kind, from top to bottom.
    """
    figure, axes = panels(2, 2, 1.4 + 0.3 * len(kinds), sharex=True, sharey=True)
    for panel, baseline, title in zip(axes, (UNTUNED, TUNED), ("default parameters", "tuned for each world"), strict=True):
        head(panel, f"to impact-greedy, {title}")
        for place, own in enumerate(kinds.values()):
            _draw(panel, place, np.array([difference(result, baseline) for result in own]))
        panel.axvline(0, color=GREY, linewidth=1)
        panel.axvline(CLOSE, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        panel.set_xscale("symlog", linthresh=_LINEAR)
        panel.set_xlabel("difference of QoS per arrived request")
        panel.tick_params("x", rotation=60)
    ticks = [-tick for tick in reversed(_TICKS)] + [0.0, *_TICKS]
    axes[0].set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes[0].set_xticks([], minor=True)
    axes[0].set_yticks(range(len(kinds)), [f"{kind} ({len(own)})" for kind, own in kinds.items()])
    axes[0].set_ylim(len(kinds) - 0.4, -0.6)
    figure.suptitle(
        f"dot: a world; bar: 5th to 95th percentile; large dot: mean; dashed: {CLOSE:g}", x=0.01, ha="left", fontsize=9
    )
    write_figure(figure, path)


def _draw(axes: Axes, place: int, differences: np.ndarray) -> None:
    """One kind of world: dots, spread by their order, and a bar over them."""
    spread = 0.5 * (np.arange(differences.size) * 0.618 % 1 - 0.5)
    axes.plot(differences, place + spread, ".", color=COLOURS[4], markersize=3, alpha=0.6)
    low, high = np.quantile(differences, (0.05, 0.95))
    axes.plot([low, high], [place, place], color=COLOURS[0], linewidth=2)
    axes.plot([differences.mean()], [place], "o", color=COLOURS[1], markersize=5)
