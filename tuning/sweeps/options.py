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


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    space: str = "reward-weights"
    """What is varied: reward-weights, graph, learner, or a YAML file (docs/sweeps.md)."""
    config: Path | None = None
    """YAML file of train's options, the same for all trials but for what the space says."""
    search: Literal["random", "grid", "optuna"] = "random"
    """How settings are chosen: at random; every combination, with three levels of each range; or by Optuna's TPE."""
    objective: Literal["qos", "pareto"] = "qos"
    """qos: the best QoS; pareto, with optuna: QoS against the GPU time that a request takes."""
    scheduler: Literal["none", "asha", "pbt"] = "asha"
    """asha: stop the worse two thirds of the trials again and again; pbt: bad trials go on from good ones with changed settings,
    for spaces of the learner and of the reward alone; none: all trials run to the end."""
    num_samples: int = 8
    """Trials, the usual settings being the first where the space holds them; with grid, repetitions of it."""
    iterations: int = 20
    """Iterations of a trial that is not stopped before."""
    grace: int = 5
    """asha: iterations that every trial is given."""
    finalists: int = 5
    """Trials that are compared again in the end, beside the one with the usual settings."""
    final_seeds: int = 16
    """Episodes at each load of that comparison."""
    cpus_per_trial: int = 1
    """Cores of a trial; beyond the first, each is for a worker process that steps environments."""
    gpus_per_trial: float = 0.0
    """GPUs of a trial."""
    max_concurrent: int | None = None
    """Trials at the same time at most. Default: as many as the cluster has room for."""
    seed: int = 0
    """Seed of the search; that of training is train's."""
    run_dir: Path = Path("runs/sweep")
    """Folder of the sweep."""
    address: str = "local"
    """Ray: local starts one for this sweep, auto or a URL attaches to a running cluster."""
    resume: bool = False
    """Go on with the sweep in the folder: finished trials are kept, what it is made of is taken from there."""
    auto_resume: bool = False
    """Go on with the sweep in the folder if there is one, else begin it: for jobs that are started again after a failure."""
    trust_checkpoint: bool = False
    """Go on with a sweep that you did not begin yourself. It holds pickles, which can run any code: only if you trust whoever
    did."""
    storage: str | None = None
    """Where trials write, on whatever node they run, and the results go too: a folder that all nodes share, or a URL such as
    s3://bucket/sweeps; the sweep is below it under the name of its folder. --resume goes on from there (docs/reliability.md)."""
    track: Annotated[TrackOptions, tyro.conf.arg(name="")] = field(default_factory=TrackOptions)
    smoke: bool = False
    """A tiny sweep that takes seconds for each trial."""


def check_options(options: Options, space: Space) -> None:
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
