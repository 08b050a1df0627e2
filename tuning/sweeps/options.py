"""Options of a sweep, and which of them do not go together."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from models.rllib.avl.settings import AVLSettings
from rllib_envs.errors import InputError
from tuning.output.tracking import TrackOptions
from tuning.specs.grammar import check_limits
from tuning.sweeps.space import Space

SMOKE: dict[str, Any] = {"iterations": 2, "grace": 1, "finalists": 2, "final_seeds": 2}
"""What ``smoke`` sets."""

_GOES_WITH_PBT = {"lr", "temperature", *(f.name for f in fields(AVLSettings))}  # no weight depends on them
_LIMITS: dict[str, tuple[float, float]] = {
    "num_samples": (1, 10**5),
    "iterations": (1, 10**9),
    "grace": (1, 10**9),
    "finalists": (1, 1000),
    "final_seeds": (2, 10**5),
    "cpus_per_trial": (1, 4096),
    "gpus_per_trial": (0, 1024),
    "max_concurrent": (1, 10**5),
    "seed": (0, 2**32 - 1),  # Tune makes a RandomState of it
}


HELP = {
    "search": ("space num_samples config", "catalogue predictors search objective scheduler grace seed"),
    "length and folder of the sweep": ("iterations run_dir resume smoke", "auto_resume trust_checkpoint storage"),
    "final comparison": ("finalists", "final_seeds"),
    "resources": ("cpus_per_trial gpus_per_trial address", "max_concurrent"),
    "tracking": ("", "track"),
}
"""Groups of the help (``tuning/specs/command_line.py``): title -> (basic options, advanced options)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """Options of the command."""

    space: str = "reward-weights"
    """What varies: reward-weights, graph, learner, or a YAML file (docs/sweeps.md)."""
    config: Path | None = None
    """YAML file of train's options, the same for all trials except for what the space varies."""
    catalogue: str | None = None
    """File of real prompts for all trials, as for train. Default: that of the configuration."""
    predictors: str | None = None
    """Folder of predictors for all trials, as for train. Default: that of the configuration."""
    search: Literal["random", "grid", "optuna"] = "random"
    """How to choose settings: at random; every combination, with three levels of each range (grid); or by Optuna's TPE."""
    objective: Literal["qos", "pareto"] = "qos"
    """qos: the best QoS. pareto, with optuna: QoS against the GPU time of a request."""
    scheduler: Literal["none", "asha", "pbt"] = "asha"
    """asha: stop the worse two thirds of the trials again and again. pbt: bad trials continue from good ones with changed
    settings, in spaces of the learner and the reward alone. none: run all trials to the end."""
    num_samples: int = 8
    """Number of trials. The first has the usual settings if the space holds them. With grid: its repetitions."""
    iterations: int = 20
    """Iterations of a trial that is not stopped early."""
    grace: int = 5
    """asha: iterations that every trial gets."""
    finalists: int = 5
    """Trials to compare again at the end, beside the one with the usual settings."""
    final_seeds: int = 16
    """Episodes at each load of that comparison."""
    cpus_per_trial: int = 1
    """Cores of a trial; each core beyond the first is for a worker process that steps environments."""
    gpus_per_trial: float = 0.0
    """GPUs of a trial."""
    max_concurrent: int | None = None
    """Most trials at the same time. Default: as many as the cluster has room for."""
    seed: int = 0
    """Seed of the search; train has its own."""
    run_dir: Path = Path("runs/sweep")
    """Folder of the sweep."""
    address: str = "local"
    """Ray: local starts one for this sweep, auto or a URL attaches to a running cluster."""
    resume: bool = False
    """Continue the sweep in the folder. It keeps finished trials and its definition."""
    auto_resume: bool = False
    """Continue the sweep in the folder if there is one, else begin it: for jobs that restart after a failure."""
    trust_checkpoint: bool = False
    """Continue a sweep that you did not begin. It holds pickles, which can run any code, so trust whoever did."""
    storage: str | None = None
    """Where all trials write: a folder that all nodes share, or a URL such as s3://bucket/sweeps. Results go there too.
    The sweep lies there under the name of its folder. --resume continues from there (docs/reliability.md)."""
    track: Annotated[TrackOptions, tyro.conf.arg(name="")] = field(default_factory=TrackOptions)
    smoke: bool = False
    """A tiny sweep that takes seconds for each trial."""


def check_options(options: SweepOptions, space: Space) -> None:
    """Refuse what does not go together.

    Raises:
        InputError: a number outside its limits, or options that exclude each other or the space.
    """
    for name, (low, high) in _LIMITS.items():
        check_limits(name, getattr(options, name), low, high)
    if options.objective == "pareto" and options.search != "optuna":
        raise InputError(f"objective = pareto: needs search = optuna, not {options.search}")
    if options.search == "optuna" and options.scheduler == "pbt":
        raise InputError("scheduler = pbt: changes settings by itself: needs search = random or grid, not optuna")
    if options.scheduler == "pbt":
        fixed = [path for path in space.parameters if path.replace("-", "_") not in _GOES_WITH_PBT and "reward." not in path]
        if fixed:
            allowed = f"reward.* and {', '.join(sorted(_GOES_WITH_PBT))}"
            raise InputError(f"scheduler = pbt: {fixed[0]} cannot change within a run; allowed are {allowed}")
