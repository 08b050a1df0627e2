"""Write a report on training runs, evaluations, sweeps and replays of logs, with figures, and the traffic of a minute.

It writes report.html (one self-contained page), the same as report.md, and the figures as PNG files. Training runs that differ in
the seed alone are grouped. The traffic is that of the first training run that has a checkpoint with an impact estimator, on its
scenario. Without one it is that of the shipped router on edge6. Example:

    edgeroute report runs/mine-0 runs/mine-1 runs/comparison --out runs/report
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from rllib_envs.errors import InputError
from rllib_envs.scenarios.load import load_scenario, parse_scenario
from tuning.evaluation.matrix import EVALUATION_SEEDS
from tuning.reports.document import Document, Section, to_html, to_markdown
from tuning.reports.episode_replay import Question, explains_itself, replay_episode
from tuning.reports.evaluation_section import evaluation_section
from tuning.reports.log_section import log_section
from tuning.reports.overview import overview, reading
from tuning.reports.replay_section import replay_sections
from tuning.reports.run_folders import Evaluation, LogReplay, Run, Sweep, TrainingRun, read_run
from tuning.reports.sweep_section import sweep_section
from tuning.reports.training_section import training_sections
from tuning.run_dir.atomic import write_text
from tuning.specs.prompts import with_predictions
from tuning.specs.routers import SHIPPED_ROUTER

_SHIPPED_SCENARIO = "edge6"
_BOOTSTRAP_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN...")]
    """Folders of training runs, evaluations, sweeps and replays (replay --out), in any mixture."""
    out: Path = Path("runs/report")
    """Folder for report.html, report.md and the figures."""
    load: str = "moderate"
    """Load of the traffic that is shown: light, moderate, heavy, mixed, native, requests/s, or a share of the capacity (70%)."""
    minute: int = 1
    """Minute of that traffic to look into, counted from 0; the cluster is empty as it begins."""
    seed: int = EVALUATION_SEEDS.start
    """Seed of that traffic, one of those that routers are evaluated on."""


def run(options: Options) -> None:
    """Read the runs, draw, and write the report.

    Raises:
        InputError: no run given, or a folder that is none; a load, minute or seed that is not possible; a file that cannot be
            read or written.
    """
    if not options.runs:
        raise InputError("run: none given; allowed are folders of training runs, evaluations, sweeps and replays")
    runs = [read_run(path) for path in dict.fromkeys(options.runs)]
    question = _question(options, [run for run in runs if isinstance(run, TrainingRun)])
    replay = replay_episode(question)
    document = Document(
        title="edgeroute report",
        sections=[
            overview(runs),
            reading(),
            *_results(runs, options.out),
            *replay_sections(replay, options.out),
        ],
    )
    write_text(options.out / "report.md", to_markdown(document))
    write_text(options.out / "report.html", to_html(document, options.out))
    print(f"Written: {options.out / 'report.html'}, {options.out / 'report.md'} and its figures")


def _results(runs: Sequence[Run], out: Path) -> list[Section]:
    rng = np.random.default_rng(_BOOTSTRAP_SEED)
    trained = [run for run in runs if isinstance(run, TrainingRun)]
    evaluations = [run for run in runs if isinstance(run, Evaluation)]
    sweeps = [run for run in runs if isinstance(run, Sweep)]
    replays = [run for run in runs if isinstance(run, LogReplay)]
    return [
        *(evaluation_section(run, trained, out, i, rng) for i, run in enumerate(evaluations, start=1)),
        *training_sections(trained, out, rng),
        *(sweep_section(run, out, i) for i, run in enumerate(sweeps, start=1)),
        *(log_section(run, out, i) for i, run in enumerate(replays, start=1)),
    ]


def _question(options: Options, trained: Sequence[TrainingRun]) -> Question:
    """Whose traffic to show."""
    for run in trained:
        bundle = run.bundle
        if bundle is not None and explains_itself(bundle):
            router, scenario = f"The router of {run.path}", parse_scenario(run.world, str(run.path))
            break
    else:
        bundle, router = SHIPPED_ROUTER, "The router that comes with edgeroute"
        scenario = with_predictions(load_scenario(_SHIPPED_SCENARIO), "oracle-noise")  # as in its training
    return Question(bundle=bundle, router=router, scenario=scenario, load=options.load, minute=options.minute, seed=options.seed)
