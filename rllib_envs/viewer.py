"""A plot of a cluster over time: running and waiting requests, KV memory in use, late requests, classes, experts' status."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from rllib_envs.scenario import Scenario
from rllib_envs.sim.rows import EXPERT_TABLE
from rllib_envs.sim.state import CANCELLED, CONFINED, DROPPED, FAILED, REJECTED
from rllib_envs.simulation import Records, Simulation

_MOST_NAMES = 16  # of experts beside the strip of their status
_DRAWN = ("running", "waiting", "kv_used")  # expert features drawn over time

STATUSES = {"idle": "#D5DADF", "serving": "#8CC5E3", "queue full": "#7B3294", "down or drained": "#D7301F"}
"""What an expert may be doing -> its colour."""


def expert_status(simulation: Simulation, cluster: int) -> NDArray[np.int8]:
    """(N,) index in STATUSES of what each expert of a cluster is doing, as the router knows of it."""
    experts, engines = simulation.state.experts[cluster], simulation.state.engines[cluster]
    closed = simulation.world.nominal["max_waiting"][cluster] == 0
    full = experts["n_wait"] >= engines["max_waiting"]
    return np.select([closed, full, experts["n_run"] + experts["n_wait"] > 0], [3, 2, 1], 0).astype(np.int8)


def missed_at_s(records: Records, service: int) -> NDArray[np.float64]:
    """(K,) when each request of a service class that is not in time was known not to be, ascending.

    A late one counts when it finishes; one that was dropped, rejected, given up or lost for good when it arrives.
    """
    away = np.isin(records.status, (DROPPED, REJECTED, CONFINED, CANCELLED, FAILED))
    when_s = np.where(away, records.arrival_s, records.finish_s)
    return np.sort(when_s[(records.service == service) & (away | records.late)])


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
        self.status: list[NDArray[np.int8]] = []  # (N,) each, as ``expert_status``
        self._classes = [entry.name for entry in scenario.classes]
        self._records: Records | None = None  # of the last decision, if there are classes

    def restart(self, simulation: Simulation) -> None:
        """Clear the history and record the first observation of the new episode."""
        for entries in (self.times_s, self.experts, self.late, self.turned_away, self.status):
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
        self.status.append(expert_status(simulation, 0))
        if self._classes:
            self._records = simulation.records(0)

    def draw(self) -> NDArray[np.uint8]:
        """The episode so far as a (height, 1000, 3) picture, one colour for each expert.

        The last panel but one has the status of each expert. With service classes there is one more, on each class.
        """
        heights = [1.0] * 4 + [0.12 * min(len(self.names), _MOST_NAMES) + 0.2] + ([1.0] if self._classes else [])
        figure = Figure(figsize=(10, 2.0 * sum(heights) + 0.8), dpi=100, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        axes: Any = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
        table = np.stack(self.experts)  # (T, N)
        late = np.stack(self.late)
        panels = [EXPERT_TABLE[name].scale * table[name] for name in _DRAWN]
        for axis, values, label in zip(
            axes[:4],
            [*panels, late],
            ("running requests", "waiting requests", "KV blocks in use", "finished late so far"),
            strict=True,
        ):
            for e, name in enumerate(self.names):
                axis.plot(self.times_s, values[:, e], drawstyle="steps-post", linewidth=1.2, color=f"C{e % 10}", label=name)
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
        axes[2].set_ylim(0, 1.02)
        axes[2].yaxis.set_major_formatter(PercentFormatter(xmax=1))
        axes[3].plot(self.times_s, self.turned_away, color="black", linestyle="--", linewidth=1.2, label="dropped or rejected")
        self._draw_status(axes[4])
        if self._records is not None:
            self._draw_classes(axes[5], self._records)
        axes[-1].set_xlabel("time, s")
        axes[3].set_xlim(self.times_s[0], max(self.last_arrival_s, self.times_s[0] + 1))  # the drain is one long step: not drawn
        figure.suptitle(f"{self.title}; {late[-1].sum()} finished late, {self.turned_away[-1]} dropped or rejected")
        handles, labels = axes[3].get_legend_handles_labels()
        shown = min(len(self.names), 8)  # more names do not fit in the picture
        figure.legend(
            handles[:shown] + handles[-1:], labels[:shown] + labels[-1:], loc="outside lower center", ncols=4, fontsize=8
        )
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()

    def _draw_status(self, axis: Any) -> None:
        """Draw a strip for each expert, coloured by its status."""
        status = np.stack(self.status)  # (T, N)
        ends = [*self.times_s[1:], self.times_s[-1]]
        for e in range(len(self.names)):
            starts = np.flatnonzero(np.diff(status[:, e], prepend=-1))
            last = [*(starts[1:] - 1), len(ends) - 1]
            spans = [(self.times_s[i], ends[j] - self.times_s[i]) for i, j in zip(starts, last, strict=True)]
            axis.broken_barh(spans, (e - 0.45, 0.9), facecolors=[list(STATUSES.values())[k] for k in status[starts, e]])
        axis.set_ylim(len(self.names) - 0.5, -0.5)
        if len(self.names) <= _MOST_NAMES:
            axis.set_yticks(range(len(self.names)), self.names, fontsize=7)
        handles = [Patch(color=colour, label=name) for name, colour in STATUSES.items()]
        axis.legend(handles=handles, loc="upper left", ncols=len(handles), fontsize=7)

    def _draw_classes(self, axis: Any, records: Records) -> None:
        """Draw the requests of each service class that were not answered in time so far."""
        for i, name in enumerate(self._classes):
            own_s = missed_at_s(records, i)
            times_s = [self.times_s[0], *own_s, max(self.times_s[-1], *own_s[-1:])]
            counts = [*range(own_s.size + 1), own_s.size]
            axis.plot(times_s, counts, drawstyle="steps-post", linewidth=1.2, color=f"C{i % 10}", label=name)
        axis.set_ylabel("not in time so far")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(title="class", loc="upper left", fontsize=7, title_fontsize=7)
