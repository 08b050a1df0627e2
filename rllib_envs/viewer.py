"""A plot of a cluster over time: running and waiting requests, KV memory in use, late requests."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from rllib_envs.scenario import Scenario
from rllib_envs.sim.rows import EXPERT_TABLE
from rllib_envs.simulation import Simulation

_DRAWN = ("running", "waiting", "kv_used")  # expert features drawn over time


class History:
    """History of an episode: its state at each decision."""

    def __init__(self, scenario: Scenario) -> None:
        """Create an empty history."""
        self.names = [expert.name for expert in scenario.experts]
        self.title = f"{scenario.name}: SLO {scenario.slo_s_per_token * 1e3:g} ms per token"
        self.last_arrival_s = 0.0
        self.times_s: list[float] = []
        self.experts: list[NDArray[np.void]] = []  # (N,) EXPERT_ROW each
        self.late: list[NDArray[np.int64]] = []  # (N,) each, requests that finished late so far
        self.turned_away: list[int] = []  # dropped or rejected so far
        self.closed: list[NDArray[np.bool_]] = []  # (N,) each, whether the router knows that the expert is down or drained

    def restart(self, simulation: Simulation) -> None:
        """Clear the history and record the first observation of the new episode."""
        for entries in (self.times_s, self.experts, self.late, self.turned_away, self.closed):
            entries.clear()
        self._add(simulation, 0)

    def record(self, simulation: Simulation) -> None:
        """Record the state after a decision."""
        step = simulation.steps[0]
        self._add(simulation, self.turned_away[-1] + int(step["dropped"]) + int(step["rejected"]))

    def _add(self, simulation: Simulation, turned_away: int) -> None:
        if not simulation.over[0]:
            self.last_arrival_s = float(simulation.now_s[0])
        self.times_s.append(float(simulation.now_s[0]))
        self.experts.append(simulation.rows.experts[0].copy())
        self.late.append(simulation.state.experts["late"][0].copy())
        self.turned_away.append(turned_away)
        self.closed.append(simulation.world.nominal["max_waiting"][0] == 0)

    def draw(self) -> NDArray[np.uint8]:
        """The episode so far as an (800, 1000, 3) picture, one colour for each expert."""
        figure = Figure(figsize=(10, 8), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes: Any = figure.subplots(4, 1, sharex=True)
        table = np.stack(self.experts)  # (T, N)
        late = np.stack(self.late)
        panels = [EXPERT_TABLE[name].scale * table[name] for name in _DRAWN]
        for axis, values, label in zip(
            axes,
            [*panels, late],
            ("running requests", "waiting requests", "KV blocks in use", "finished late so far"),
            strict=True,
        ):
            for e, name in enumerate(self.names):
                axis.plot(self.times_s, values[:, e], drawstyle="steps-post", linewidth=1.2, color=f"C{e % 10}", label=name)
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
        for e, closed in enumerate(np.stack(self.closed).T):
            for first, last in _spells(closed):
                axes[0].axvspan(self.times_s[first], self.times_s[last], color=f"C{e % 10}", alpha=0.15, linewidth=0)
        axes[2].set_ylim(0, 1.02)
        axes[2].yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes[3].plot(self.times_s, self.turned_away, color="black", linestyle="--", linewidth=1.2, label="dropped or rejected")
        axes[3].set_xlabel("time, s")
        axes[3].set_xlim(self.times_s[0], max(self.last_arrival_s, self.times_s[0] + 1))  # the drain is one long step: not drawn
        figure.suptitle(f"{self.title}; {late[-1].sum()} finished late, {self.turned_away[-1]} dropped or rejected")
        handles, labels = axes[3].get_legend_handles_labels()
        shown = min(len(self.names), 8)  # more names do not fit in the picture
        figure.legend(
            handles[:shown] + handles[-1:], labels[:shown] + labels[-1:], loc="outside lower center", ncols=4, fontsize=8
        )
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _spells(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """(first, one after the last, or the last of all) of each run of true ones."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]])))
    return [(first, min(end, flags.size - 1)) for first, end in edges.reshape(-1, 2).tolist()]
