"""What learned predictions are worth: a tuned heuristic with them, with expert means, and with the truth plus noise.

    python -m benchmarks.predictors_worth --catalogue prompts.jsonl --predictors predictors

Experts are those of edge6; where the predictors lack their models, they get the first six models of the predictors. Impact-greedy
is tuned anew for each kind of predictions, on the train split, where predictors predict out of fold. All kinds meet the same
requests of the test split. The last column is the paired difference to expert means over episodes, with its 95 % interval. Cells
that are done are kept in the folder ``--out``. It takes some ten minutes on two cores.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from rllib_envs.baselines import HEURISTICS
from rllib_envs.scenario import PredictionLaw, Scenario, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.workload.prediction_table import read_table
from tuning.evaluation.matrix import EVALUATION_SEEDS, TUNING_SEEDS, Cell, run_cells
from tuning.metrics.statistics import mean_interval, paired_difference
from tuning.output.tables import markdown_table, show_interval
from tuning.specs.grammar import format_spec
from tuning.specs.prompts import with_information
from tuning.specs.routers import parse_router
from tuning.specs.workloads import NamedWorkload, TraceOptions, make_workloads

ROUTER = "impact-greedy"
KINDS: dict[str, PredictionLaw] = {"expert means": "means", "learned": "given", "truth plus noise": "oracle-noise"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options."""

    catalogue: Path
    """File of prompts, with which the predictors were fitted."""
    predictors: Path
    """Their folder."""
    load: tuple[str, ...] = ("light", "moderate", "heavy", "150%")
    """Loads."""
    seeds: int = 20
    """Episodes of the comparison."""
    tuning_seeds: int = 10
    """Episodes for each setting in tuning."""
    out: Path = Path("runs/predictors-worth")
    """Folder for cells."""


def fleet(predictors: Path) -> Scenario:
    """edge6, with models that the predictors know."""
    scenario, known = load_scenario("edge6"), read_table(predictors).models
    if all(expert.model in known for expert in scenario.experts):
        return scenario
    experts = tuple(replace(expert, model=model) for expert, model in zip(scenario.experts, known, strict=False))
    return replace(scenario, experts=experts, capacity_rps=None)


def workloads(options: Options, law: PredictionLaw, split: str) -> list[NamedWorkload]:
    """The workloads under one kind of predictions."""
    predictors = options.predictors if law == "given" else None
    world = with_information(fleet(options.predictors), options.catalogue, law, predictors)
    made = make_workloads(world, options.load, (), TraceOptions(), None)
    return [replace(w, scenario=_on(w.scenario, split)) for w in made]


def _on(scenario: Scenario, split: str) -> Scenario:
    return with_workload(scenario, catalogue=replace(scenario.workload.catalogue, split=split))


def settings() -> list[str]:
    """Impact-greedy with each combination of its grid."""
    grid = HEURISTICS[ROUTER].grid
    return [format_spec(ROUTER, dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]


def best_settings(options: Options, worlds: Sequence[NamedWorkload], kind: str) -> list[str]:
    """The best setting at each workload, on the train split."""
    tried, seeds = settings(), tuple(TUNING_SEEDS[: options.tuning_seeds])
    cells = [Cell(router=parse_router(text), scenario=w.scenario, seeds=seeds) for w in worlds for text in tried]
    results = run_cells(cells, options.out / "cells", None, f"tuning for {kind}")
    qos = [mean_interval(result.metrics["qos"]).mean for result in results]
    return [max(zip(qos[i : i + len(tried)], tried, strict=True))[1] for i in range(0, len(qos), len(tried))]


def main() -> None:
    """Compare, and print the table."""
    options = tyro.cli(Options)
    seeds = tuple(EVALUATION_SEEDS[: options.seeds])
    rows, means = list[list[str]](), list[list[float]]()
    for kind, law in KINDS.items():
        chosen = best_settings(options, workloads(options, law, "train"), kind)
        worlds = workloads(options, law, "test")
        cells = [
            Cell(router=parse_router(text), scenario=w.scenario, seeds=seeds) for text, w in zip(chosen, worlds, strict=True)
        ]
        found = [result.metrics["qos"] for result in run_cells(cells, options.out / "cells", None, kind)]
        means = means or found
        for w, text, values, base in zip(worlds, chosen, found, means, strict=True):
            difference = show_interval("qos", paired_difference(values, base), signed=True)
            rows.append([w.load, kind, text, show_interval("qos", mean_interval(values)), difference])
    rows.sort(key=lambda row: options.load.index(row[0]))
    print(markdown_table(["load", "predictions", "tuned", "mean QoS", "less expert means"], rows, names=3))


if __name__ == "__main__":
    main()
