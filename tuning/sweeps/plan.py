"""The common definition of a sweep's trials, and the names of what they report; without Ray."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from tuning.run_dir.atomic import write_text
from tuning.sweeps.space import Settings, Space, experiment
from tuning.training.options import TrainOptions

QOS, LATE, GPU_S, STEPS, SECONDS = "qos", "late_share", "gpu_s_per_request", "steps", "seconds"
"""What a trial reports each iteration. Figures are means over the loads of the validation episodes."""

SCENARIO = "scenario.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPlan:
    """The common definition of a sweep's trials."""

    options: TrainOptions
    space: Space
    folder: Path  # each trial has its own in it, by its name
    key: bytes | None = field(default=None, repr=False)  # that trials sign their checkpoints with
    trusted: bool = False  # whether checkpoints count without a valid signature


def written_experiment(plan: TrialPlan, settings: Settings, folder: Path) -> TrainOptions:
    """The options of train for a trial. A scenario that the settings change is written to the folder, and the options name it."""
    options, scenario = experiment(plan.options, plan.space, settings)
    if not any(path.startswith("scenario.") for path in (*plan.space.base, *settings)):
        return options
    write_text(folder / SCENARIO, scenario.to_yaml())
    return replace(options, scenario=str((folder / SCENARIO).absolute()))
