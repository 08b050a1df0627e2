"""Train a router.

A run starts as the impact-greedy heuristic and learns the errors of its impact estimate. It also learns the opportunity cost of a
decision: what it costs later requests. First a search on whole episodes finds the congestion price; then the graph encoder joins.
Ctrl-C stops a run with a checkpoint, and --resume continues it (docs/reliability.md). Train for five minutes and compare:

    edgeroute train --minutes 5 --run-dir runs/mine
    edgeroute export runs/mine --out bundles/mine
    edgeroute evaluate --load light moderate heavy --routers best bundle:bundles/mine
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.rllib.checkpoint import (
    ABOUT,
    BUNDLE,
    find_checkpoint,
    load_router,
    numbered_checkpoints,
    quarantine_damaged,
    restore_checkpoint,
    save_checkpoint,
    whole_checkpoint,
)
from models.rllib.errors import TrainingFailed
from models.rllib.rollout.env_groups import Group
from rllib_envs.errors import InputError
from rllib_envs.scenario import Scenario
from rllib_envs.scenarios.load import parse_scenario
from rllib_envs.yaml_files import dump_yaml, read_mapping
from tuning.logged_worlds.run import begin_from_log, finish, router_to_continue
from tuning.output.tracking import ROUTER, bundle_name, provenance, tracker
from tuning.ray_cluster.session import ray_session
from tuning.run_dir.atomic import write_text
from tuning.run_dir.lock import run_lock
from tuning.run_dir.remote_copy import RemoteCopy
from tuning.run_dir.resume import resumes
from tuning.run_dir.secret_urls import without_secrets
from tuning.run_dir.signature import check_signature, signed
from tuning.training.curve import draw_curve
from tuning.training.log import LOG, Iteration, RunLog, read_log
from tuning.training.loop import Diverged, StopLimits, Trainer
from tuning.training.options import HELP, LOGGED_MINUTES, TrainOptions, complete, defaults, definition, resumed
from tuning.training.setup import about_run, algorithm_of, needs_of, validator_of, variant_options
from tuning.training.variants import base_scenario, training_groups

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

__all__ = ["HELP", "Options", "defaults", "load_router", "run"]

Options = TrainOptions

_CONFIG, _CURVE = "config.yaml", "training.png"
_EXIT_FAILED, _EXIT_INTERRUPTED = 1, 130


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """Where a start of a run begins."""

    options: TrainOptions  # complete
    scenario: Scenario
    beside: Scenario | None = None  # the same cluster with other arrivals
    checkpoint: Path | None = None  # to resume from
    about: dict[str, Any] = field(default_factory=dict[str, Any])  # what that says of itself

    @property
    def count(self) -> int:
        """How often the run has been started, this time included."""
        return self.about.get("starts", 0) + 1

    @property
    def elapsed_s(self) -> float:
        """Seconds that the run had lasted, over all starts. Unknown, and 0, where an earlier version wrote the checkpoint."""
        return self.about.get("elapsed_s", 0.0)

    @property
    def minutes(self) -> float | None:
        """Limit on this start."""
        minutes = self.options.minutes
        return minutes if minutes is None or not self.options.auto_resume else minutes - self.elapsed_s / 60

    @property
    def complete(self) -> bool:
        """Whether the run had reached one of its limits."""
        left = [self.minutes]
        for limit, name in ((self.options.steps, "steps"), (self.options.iterations, "iteration")):
            left.append(None if limit is None else limit - self.about.get(name, 0))
        return self.checkpoint is not None and any(amount is not None and amount <= 0 for amount in left)


def run(options: TrainOptions) -> int:
    """Train, print a line an iteration, and leave a run directory.

    Returns:
        0, also after SIGTERM or SIGHUP, with a checkpoint written; 130 after SIGINT, likewise; 1 if a loss or gradient was not
        finite, or training has lost processes that it needs.

    Raises:
        InputError: an option or scenario that is not valid; a run directory that is taken, in use, missing, damaged or not
        trusted; the last checkpoint, or the copy in the storage, cannot be written.
    """
    complete(options)  # errors in them show before anything is touched
    if options.resume and options.storage is None:
        find_checkpoint(options.run_dir)
    remote_copy = None if options.storage is None else RemoteCopy(options.storage, options.run_dir, config=_CONFIG)
    with run_lock(options.run_dir):
        going_on = resumes(options, remote_copy, "run", lambda: bool(numbered_checkpoints(options.run_dir)))
        start = _continue(options) if going_on else _begin(options)
        code = _say_complete(start) if start.complete else _train(start, remote_copy)
        if remote_copy is not None:
            remote_copy.put()
    return code


def _say_complete(start: _Start) -> int:
    """Say that there is nothing to do. Draw the curve if the run was killed before it was drawn."""
    options, about = start.options, start.about
    _draw(start, read_log(options.run_dir / LOG, about["iteration"]))
    print(f"{options.run_dir}: complete already: {about['iteration']:,} iterations, {about['steps']:,} decisions")
    if options.from_log is not None and start.checkpoint is not None:
        finish(options.run_dir, start.checkpoint / BUNDLE, options.held_out, options.seed)
    return 0


def _train(start: _Start, remote_copy: RemoteCopy | None) -> int:
    """Train from there, and return the exit code."""
    options, scenario = start.options, start.scenario
    groups = training_groups(scenario, variant_options(options), options.envs_per_runner, start.beside)
    records = read_log(options.run_dir / LOG, start.about["iteration"]) if start.checkpoint else []
    with (
        tracker(
            options.track,
            folder=options.run_dir,
            name=options.run_dir.name,
            job_type="train",
            config=_tracked(options, scenario),
            resume=options.resume,
        ) as track,
        ray_session(options.address, needs_of(options)),
        algorithm_of(options, scenario, groups, start.count) as algorithm,
        RunLog(options.run_dir, records, track) as log,
    ):
        if options.from_log is not None:
            from models.rllib.avl.algorithm import begin_from  # here: it needs Ray

            begin_from(algorithm, router_to_continue(options.run_dir))
        if start.checkpoint is not None:
            restore_checkpoint(start.checkpoint, start.about, algorithm)
            quarantine_damaged(options.run_dir, start.checkpoint)
        trainer = _trainer(start, groups, algorithm, log, remote_copy)
        asked, code = None, 0
        try:
            asked = trainer.train()
        except (Diverged, TrainingFailed) as error:
            saved = trainer.saved or start.checkpoint
            advice = "nothing is saved yet" if saved is None else f"{saved} is the last state saved, --resume goes on from there"
            print(f"edgeroute: error: {error}; {advice}", file=sys.stderr)
            code = _EXIT_FAILED
        finally:
            _draw(start, log.records)
        if asked:
            print(f"edgeroute: {asked.name}: {trainer.saved} is written, --resume goes on from there", file=sys.stderr)
            code = _EXIT_INTERRUPTED if asked == signal.SIGINT else 0
        if log.records and trainer.saved:
            track.image("training", options.run_dir / _CURVE)
            bundle = bundle_name(trainer.saved / BUNDLE)
            track.artifact(trainer.saved / BUNDLE, bundle.name, ROUTER, metadata=bundle.about, aliases=[bundle.alias])
        track.finish(code)
    if not asked and not code:
        print(f"Written: {trainer.saved}, {options.run_dir / LOG}, {options.run_dir / _CURVE}")
        if options.from_log is not None and trainer.saved is not None:
            finish(options.run_dir, trainer.saved / BUNDLE, options.held_out, options.seed)
    return code


def _draw(start: _Start, records: Sequence[Iteration]) -> None:
    """Draw the learning curve. A failure does not matter: a full disk is reported with the checkpoint."""
    options = start.options
    if records:
        with suppress(InputError):
            title = f"{options.algo} on {start.scenario.name}, load {options.load}, seed {options.seed}"
            draw_curve(options.run_dir / _CURVE, records, title)


def _tracked(options: TrainOptions, scenario: Scenario) -> dict[str, Any]:
    """The configuration of a tracked run."""
    return {
        "options": {**asdict(options), "storage": options.storage and without_secrets(options.storage)},
        "scenario": scenario.to_dict(),
        "fingerprint": scenario.fingerprint(),
        **provenance(),
    }


def _trainer(
    start: _Start, groups: Sequence[Group], algorithm: Algorithm, log: RunLog, remote_copy: RemoteCopy | None
) -> Trainer:
    options = start.options
    about, began_s = about_run(options, start.scenario, groups, start.count), time.monotonic()

    def save(iteration: int, steps: int) -> Path:
        log.sync()  # no checkpoint without the records that led to it
        elapsed_s = start.elapsed_s + time.monotonic() - began_s
        saved = save_checkpoint(
            options.run_dir, algorithm, {"iteration": iteration, "steps": steps, "elapsed_s": elapsed_s, **about}, signed
        )
        if remote_copy is not None:
            try:
                remote_copy.put()
            except InputError as error:
                print(f"edgeroute: warning: {error}; it is tried again with the next checkpoint", file=sys.stderr, flush=True)
        return saved

    return Trainer(
        algorithm,
        log,
        StopLimits(steps=options.steps, iterations=options.iterations, minutes=start.minutes),
        steps_per_iteration=options.steps_in_iteration,
        validator=validator_of(options, start.scenario),
        validate_every=options.validate_every,
        save=save,
    )


def _begin(options: TrainOptions) -> _Start:
    """Lay out a new run directory."""
    options = complete(replace(options, resume=False))
    variants, beside = variant_options(options), None
    if options.from_log is not None and options.bundle is not None:
        scenario, beside = begin_from_log(
            Path(options.from_log),
            Path(options.bundle),
            options.run_dir,
            held_out=options.held_out,
            requests=options.requests,
            reward=options.reward,
            seed=options.seed,
        )
    else:
        scenario = base_scenario(variants)
    training_groups(scenario, variants, options.envs_per_runner, beside)  # errors in the fleets show before anything is written
    contents = {
        "options": definition(options),
        "limits": {name: getattr(options, name) for name in ("steps", "iterations")},
        "fingerprint": scenario.fingerprint(),
        "scenario": scenario.to_dict(),
        **({} if beside is None else {"beside": beside.to_dict()}),
    }
    write_text(options.run_dir / _CONFIG, dump_yaml(contents))
    return _Start(options=options, scenario=scenario, beside=beside)


def _continue(options: TrainOptions) -> _Start:
    """Resume the run in the folder from its newest whole checkpoint, with its options, and its limits unless given."""
    checkpoint, about, faults = whole_checkpoint(options.run_dir)
    for fault in faults:
        print(f"edgeroute: warning: {fault}; going on from {checkpoint}", file=sys.stderr)
    check_signature(about, checkpoint / ABOUT, trusted=options.trust_checkpoint)
    options = complete(replace(options, resume=True))
    config = options.run_dir / _CONFIG
    contents = read_mapping(config, "a run's configuration")
    try:
        own, limits, world = contents["options"], contents["limits"], contents["scenario"]
    except (KeyError, TypeError) as error:
        raise InputError(f"{config}: not the configuration of a run: {error}") from None
    if options.steps is None and options.iterations is None and options.minutes is None:
        options = replace(options, **limits)
    options = resumed(options, own, str(config))
    if options.from_log is not None and options.steps is None and options.iterations is None and options.minutes is None:
        options = replace(options, minutes=LOGGED_MINUTES)
    beside = parse_scenario(contents["beside"], str(config)) if "beside" in contents else None
    return _Start(options=options, scenario=parse_scenario(world, str(config)), beside=beside, checkpoint=checkpoint, about=about)
