"""What calibration changes where nothing is wrong: it shall be nothing.

Run ``python -m benchmarks.neutral --out docs/figures/neutral.png`` from the repository root. Impact-greedy routes episodes of
edge6 with calibration and without it. Engines are as the router was told, and predictions err by their law alone. So what it
learns is noise. The table has the difference of the mean QoS, paired by episode, with its 95 % interval, and the figure shows it.
Each batch of episodes that is done is kept in the folder ``--cells``. An episode takes about a
third of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from rllib_envs.scenario import PredictionLaw, Predictions
from rllib_envs.scenarios.load import load_scenario
from tuning.evaluation.matrix import EVALUATION_SEEDS, Cell, run_cells
from tuning.metrics.statistics import Interval, paired_difference
from tuning.output.plot_style import canvas, save
from tuning.output.tables import markdown_table
from tuning.specs.routers import parse_router
from tuning.specs.workloads import TraceOptions, make_workloads

ROUTERS = ("impact-greedy", "calibrated-impact-greedy")
LAWS: tuple[PredictionLaw, ...] = ("measured", "means", "oracle-noise")
LOADS = ("light", "moderate", "heavy")
ALLOWED = 0.001
BATCH = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options."""

    seeds: tuple[int, int, int] = (60, 60, 60)
    """Episodes of each law."""
    jobs: int | None = 1
    """Processes."""
    cells: Path = Path("runs/neutral")
    """Folder for what is done."""
    out: Path | None = None
    """File of the figure."""


def changes(options: Options) -> list[tuple[PredictionLaw, str, int, Interval]]:
    """Law, load, episodes, and the change of the mean QoS."""
    found = list[tuple[PredictionLaw, str, int, Interval]]()
    for law, seeds in zip(LAWS, options.seeds, strict=True):
        scenario = replace(load_scenario("edge6"), predictions=Predictions(law=law))
        for workload in make_workloads(scenario, LOADS, (), TraceOptions(), None):
            cells = [
                Cell(
                    router=parse_router(router),
                    scenario=workload.scenario,
                    seeds=tuple(EVALUATION_SEEDS[i : min(i + BATCH, seeds)]),
                )
                for router in ROUTERS
                for i in range(0, seeds, BATCH)
            ]
            results = run_cells(cells, options.cells, options.jobs, f"{law}, {workload.load}")
            qos = [value for result in results for value in result.metrics["qos"]]
            half = len(qos) // 2
            found.append((law, workload.load, half, paired_difference(qos[half:], qos[:half])))
    return found


def draw(found: Sequence[tuple[PredictionLaw, str, int, Interval]], path: Path) -> None:
    """Each change with its interval, and the band of what is allowed."""
    figure, axes = canvas(3.6)
    at = range(len(found))[::-1]
    axes.axvspan(-ALLOWED, ALLOWED, color="0.93", label=f"within {ALLOWED}")
    means, halves = [change.mean for *_, change in found], [change.half_width for *_, change in found]
    axes.errorbar(means, at, xerr=halves, fmt="o", capsize=3, label="change, 95 % interval")
    axes.set_yticks(at, [f"{law}, {load}" for law, load, *_ in found])
    axes.set_xlabel("change of the mean QoS by calibration")
    save(figure, axes, path)


def main() -> None:
    """Compare, print the table, and draw the figure."""
    options = tyro.cli(Options)
    found = changes(options)
    rows = [[law, load, str(seeds), f"{change.mean:+.5f} ± {change.half_width:.5f}"] for law, load, seeds, change in found]
    print(markdown_table(["predictions", "load", "episodes", "change of mean QoS"], rows, names=2))
    if options.out is not None:
        draw(found, options.out)


if __name__ == "__main__":
    main()
