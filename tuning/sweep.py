"""Try many settings of a training run with Ray Tune, and find out which are worth keeping.

A space says what varies. Trials report QoS on validation episodes after every iteration. The sweep then compares the best trials
and the usual settings again, on more episodes and with intervals. So the winner is not just the luckiest. --resume continues a
sweep that was stopped or killed (docs/reliability.md). Example:

    edgeroute sweep --space reward-weights --num-samples 8 --run-dir runs/sweep
    edgeroute train --config runs/sweep/best.yaml --run-dir runs/best
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rllib_envs.errors import InputError
from rllib_envs.json_files import read_json
from rllib_envs.yaml_files import dump_yaml, parse_yaml, read_mapping
from tuning.output.tracking import TrackOptions
from tuning.ray_cluster.check import Needs
from tuning.ray_cluster.session import ray_session
from tuning.run_dir.atomic import write_text
from tuning.run_dir.lock import run_lock
from tuning.run_dir.remote_copy import RemoteCopy
from tuning.run_dir.resume import resumes
from tuning.run_dir.signature import check_signature, derived_key, signed
from tuning.sweeps.options import HELP, SMOKE, SweepOptions, check_options
from tuning.sweeps.plan import TrialPlan
from tuning.sweeps.report import Finding, write_sweep
from tuning.sweeps.signed_state import STATE
from tuning.sweeps.space import Space, check_space, load_space, parse_space
from tuning.sweeps.tuner import expected_trials, tuner_of
from tuning.training.options import TrainOptions, definition, options_from, parse_options
from tuning.training.signals import endings, leave_lost_streams

if TYPE_CHECKING:
    from ray.tune import ResultGrid

__all__ = ["HELP", "Options", "run"]

Options = SweepOptions

# In the run directory: what the sweep is, Tune's own folder, the end.
_CONFIG, _TUNE, _RESULTS = "sweep.yaml", "tune", "sweep.json"
_NONCE, _TRUSTED, _NONCE_BYTES = "nonce", "trusted", 16
_OF_ONE_START = ("run_dir", "address", "resume", "auto_resume", "trust_checkpoint", "storage", "max_concurrent", "track")
_EXIT_FAILED, _EXIT_INTERRUPTED = 1, 130


def run(options: SweepOptions) -> int:
    """Run the trials, print a table of them from time to time, and write the results.

    Returns:
        0; 1 if a trial failed; 130 when interrupted, the finished trials being kept.

    Raises:
        InputError: an invalid option or space; a run directory that is taken, in use, missing or not trusted; an unusable
            storage.
    """
    remote_copy = None
    if options.storage is not None:
        remote_copy = RemoteCopy(options.storage, options.run_dir, config=_CONFIG, leave_out=[_TUNE, STATE])
        remote_copy.shared(_TUNE)  # refuses what trials could not write to
    with run_lock(options.run_dir):
        options = replace(options, resume=resumes(options, remote_copy, "sweep", (options.run_dir / _CONFIG).exists))
        if options.auto_resume and (options.run_dir / _RESULTS).exists():
            print(f"{options.run_dir}: complete already, see {options.run_dir / 'sweep.md'}")
            code = 0
        else:
            code = _search_on(options, remote_copy)
        if remote_copy is not None:
            remote_copy.put()
    return code


def _search_on(options: SweepOptions, remote_copy: RemoteCopy | None) -> int:
    """Begin or resume the sweep, and return the exit code."""
    options, space, train, vouched = _continue(options) if options.resume else _begin(options)
    if remote_copy is not None:
        remote_copy.put()  # whoever finds the trials there is to know what they are of
    plan = TrialPlan(
        options=train,
        space=space,
        folder=options.run_dir.absolute() / _TUNE,
        key=derived_key(vouched[_NONCE]),
        trusted=vouched[_TRUSTED],
    )
    shared = options.run_dir.absolute() if remote_copy is None else None
    needs = Needs(cpus=options.cpus_per_trial, gpus=options.gpus_per_trial, shared=shared, storage=options.storage)
    with ray_session(options.address, needs):
        _check_room(options)
        tuner = tuner_of(options, plan, remote_copy)
        with _endings_as_sigint():
            grid = tuner.fit()
    if remote_copy is not None:
        remote_copy.fetch_folder(_TUNE)
    trials = _trials(grid, plan)
    left = [trial for trial in trials if trial.status == "unfinished"]
    if left or len(trials) < expected_trials(options, space):
        print(f"edgeroute: interrupted: {len(trials) - len(left)} trials are kept, --resume goes on", file=sys.stderr)
        return _EXIT_INTERRUPTED
    write_sweep(options, plan, trials)
    failed = [trial for trial in trials if trial.status == "failed"]
    for trial in failed:
        print(f"edgeroute: trial {trial.name} failed: {trial.error}; see {trial.folder}/error.txt", file=sys.stderr)
    return _EXIT_FAILED if failed else 0


def _begin(options: SweepOptions) -> tuple[SweepOptions, Space, TrainOptions, dict[str, Any]]:
    """Check everything and lay out a new run directory. The last value authenticates its trials, as in ``_continue``."""
    options = replace(options, **SMOKE) if options.smoke else options
    space = load_space(options.space)
    train = _train_options(options, TrainOptions() if options.config is None else options_from(options.config))
    check_options(options, space)
    check_space(space, train, f"space {options.space}")
    vouched = {_NONCE: secrets.token_hex(_NONCE_BYTES), _TRUSTED: False}
    contents = {
        **vouched,
        "options": {key: _plain(value) for key, value in asdict(options).items() if key not in _OF_ONE_START},
        "space": space.to_dict() | {"name": space.name},
        "train": definition(train),
    }
    _write_config(options.run_dir, contents)
    return options, space, train, vouched


def _write_config(run_dir: Path, contents: dict[str, Any]) -> None:
    """Write the sweep's definition, signed: resuming it loads pickles of Tune and of its trials."""
    as_read = parse_yaml(dump_yaml(contents), str(run_dir / _CONFIG))
    write_text(run_dir / _CONFIG, dump_yaml(signed(as_read)))


def _continue(options: SweepOptions) -> tuple[SweepOptions, Space, TrainOptions, dict[str, Any]]:
    """Read the definition of the sweep in the folder. A trusted one counts as the user's own from then on.

    Returns:
        Last, what authenticates checkpoints of its trials: a word to derive their key with, and whether any checkpoint counts,
        because the user trusted somebody else's sweep.
    """
    where = options.run_dir / _CONFIG
    contents = read_mapping(where, "a sweep's description")
    try:
        own, space, train = contents["options"], dict(contents["space"]), contents["train"]
        name = space.pop("name")
        known = replace(SweepOptions(**own), config=own["config"] and Path(own["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{where}: not the description of a sweep: {error}") from None
    check_signature(contents, where, trusted=options.trust_checkpoint)
    if options.trust_checkpoint:
        contents = {_NONCE: secrets.token_hex(_NONCE_BYTES), **contents, _TRUSTED: True}
        _write_config(options.run_dir, contents)
    vouched = {_NONCE: str(contents.get(_NONCE, "")), _TRUSTED: contents.get(_TRUSTED) is True}
    options = replace(known, **{key: getattr(options, key) for key in _OF_ONE_START})
    return options, parse_space(space, name, str(where)), _train_options(options, parse_options(train, str(where))), vouched


def _train_options(options: SweepOptions, base: TrainOptions) -> TrainOptions:
    """Train's options with those that the sweep gives to each trial."""
    return replace(
        base,
        iterations=options.iterations,
        num_env_runners=options.cpus_per_trial - 1,
        validate_every=0,  # a trial validates by itself
        smoke=options.smoke,
        track=_group(options),
        catalogue=options.catalogue or base.catalogue,
        predictors=options.predictors or base.predictors,
    )


def _group(options: SweepOptions) -> TrackOptions:
    """A sweep is one group of runs."""
    return replace(options.track, wandb_group=options.track.wandb_group or options.run_dir.name)


def _check_room(options: SweepOptions) -> None:
    """Refuse a sweep if no trial could ever start."""
    import ray

    room = ray.cluster_resources()
    for name, asked in (("CPU", options.cpus_per_trial), ("GPU", options.gpus_per_trial)):
        if asked > room.get(name, 0):
            raise InputError(f"{name.lower()}s-per-trial = {asked}: the cluster has {room.get(name, 0):g}")


def _trials(grid: ResultGrid, plan: TrialPlan) -> list[Finding]:
    """Collect the results of the trials, in the order of their start. Their files are in the plan's folder by now."""
    from ray.air.constants import EXPR_PARAM_FILE

    found: list[Finding] = []
    for result in grid:
        folder = plan.folder / Path(result.path).name
        described = folder / EXPR_PARAM_FILE  # absent where a trial has not been begun
        metrics: dict[str, Any] = result.metrics or {}
        iterations = int(metrics.get("training_iteration", 0))
        if result.error is not None:
            status = "failed"
        elif not metrics.get("done"):
            status = "unfinished"
        else:
            status = "finished" if iterations >= (plan.options.iterations or 0) else "stopped"
        error = str(result.error).strip().splitlines() if result.error is not None else []
        found.append(
            Finding(
                name=folder.name,
                folder=folder,
                settings=read_json(described) if described.exists() else {},
                status=status,
                iterations=iterations,
                metrics=metrics,
                checkpoint=None if result.checkpoint is None else folder / Path(result.checkpoint.path).name,
                error=error[-1] if error else None,
            )
        )
    return sorted(found, key=lambda trial: trial.name)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


@contextmanager
def _endings_as_sigint() -> Generator[None]:
    """Tune saves its state on SIGINT alone."""
    before = {number: signal.signal(number, _interrupt) for number in endings()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: object) -> None:
    if number == signal.SIGHUP:
        leave_lost_streams()
    os.kill(os.getpid(), signal.SIGINT)
