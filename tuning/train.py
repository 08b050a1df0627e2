"""Train a router.

It starts as the impact-greedy heuristic, and learns what the impact estimate leaves out: its errors, and above all what a
decision costs the requests still to come. That price is searched for first, by trying prices on whole episodes, which is the
longer half of a run; the graph encoder joins when it is found. A run has a folder with its configuration, progress, checkpoints
and learning curve; Ctrl-C stops it with a checkpoint, --resume goes on from there. Some minutes of training, and their worth:
edgeroute train --minutes 5 --run-dir runs/mine;
edgeroute export runs/mine --out bundles/mine;
edgeroute evaluate --load light moderate heavy --routers best bundle:bundles/mine
"""

from __future__ import annotations

import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from models.rllib.checkpoint import BUNDLE, find_checkpoint, load_router, read_checkpoint, restore_checkpoint, save_checkpoint
from rllib_envs.errors import InputError
from rllib_envs.scenario import Scenario, parse_scenario
from tuning.ray_session import ray_session
from tuning.storage import write_text
from tuning.tracking import ROUTER, bundle_name, provenance, tracker
from tuning.training_curve import draw_curve
from tuning.training_log import LOG, RunLog, read_log
from tuning.training_loop import Diverged, Limits, Trainer
from tuning.training_options import Options, complete, defaults, definition, resumed
from tuning.training_setup import about_run, algorithm_of, validator_of, world_options
from tuning.training_worlds import base_world, training_groups

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

__all__ = ["Options", "defaults", "load_router", "run"]

_CONFIG, _CURVE = "config.yaml", "training.png"
_EXIT_DIVERGED, _EXIT_INTERRUPTED = 1, 130


def run(options: Options) -> int:
    """Train, print a line an iteration, and leave a run directory.

    Returns:
        0, also after SIGTERM, with a checkpoint written; 130 after SIGINT, likewise; 1 if a loss or gradient was not finite.

    Raises:
        InputError: an option or scenario that is not valid; a run directory that is taken, missing or damaged.
    """
    options = complete(options)
    checkpoint = find_checkpoint(options.run_dir) if options.resume else None
    about = None if checkpoint is None else read_checkpoint(checkpoint)
    options, scenario = _begin(options) if checkpoint is None else _continue(options)
    groups = training_groups(scenario, world_options(options), options.envs_per_runner)
    records = [] if about is None else read_log(options.run_dir / LOG, about["iteration"])
    starts = 1 if about is None else about["starts"] + 1
    with (
        tracker(
            options.track,
            folder=options.run_dir,
            name=options.run_dir.name,
            job_type="train",
            config=_tracked(options, scenario),
            resume=options.resume,
        ) as track,
        ray_session(options.address, options.num_env_runners or 0),
        algorithm_of(options, scenario, groups, starts) as algorithm,
        RunLog(options.run_dir, records, track) as log,
    ):
        if checkpoint is not None:
            restore_checkpoint(checkpoint, algorithm)
        trainer = _trainer(options, scenario, algorithm, log, starts)
        asked, code = None, 0
        try:
            asked = trainer.train()
        except Diverged as error:
            print(f"edgeroute: error: {error}; the state before it is {trainer.saved}", file=sys.stderr)
            code = _EXIT_DIVERGED
        finally:
            if log.records:
                title = f"{options.algo} on {scenario.name}, load {options.load}, seed {options.seed}"
                draw_curve(options.run_dir / _CURVE, log.records, title)
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
    return code


def _tracked(options: Options, scenario: Scenario) -> dict[str, Any]:
    """The configuration of a tracked run."""
    return {
        "options": asdict(options),
        "scenario": yaml.safe_load(scenario.to_yaml()),
        "fingerprint": scenario.fingerprint(),
        **provenance(),
    }


def _trainer(options: Options, scenario: Scenario, algorithm: Algorithm, log: RunLog, starts: int) -> Trainer:
    about = about_run(options, scenario, starts)

    def save(iteration: int, steps: int) -> Path:
        return save_checkpoint(options.run_dir, algorithm, {"iteration": iteration, "steps": steps, **about})

    return Trainer(
        algorithm,
        log,
        Limits(steps=options.steps, iterations=options.iterations, minutes=options.minutes),
        steps_per_iteration=options.steps_in_iteration,
        validator=validator_of(options, scenario),
        validate_every=options.validate_every,
        save=save,
    )


def _begin(options: Options) -> tuple[Options, Scenario]:
    """Lay out a new run directory."""
    if (options.run_dir / "checkpoints").exists():
        raise InputError(f"{options.run_dir}: holds a run already: --resume goes on with it, another --run-dir begins anew")
    worlds = world_options(options)
    scenario = base_world(worlds)
    training_groups(scenario, worlds, options.envs_per_runner)  # what is wrong with the fleets is said before anything is written
    contents = {
        "options": definition(options),
        "limits": {name: getattr(options, name) for name in ("steps", "iterations")},
        "fingerprint": scenario.fingerprint(),
        "scenario": yaml.safe_load(scenario.to_yaml()),
    }
    write_text(options.run_dir / _CONFIG, yaml.safe_dump(contents, sort_keys=False))
    return options, scenario


def _continue(options: Options) -> tuple[Options, Scenario]:
    """The options and the scenario of the run in the folder; its limits, unless others are given."""
    config = options.run_dir / _CONFIG
    try:
        contents: dict[str, Any] = yaml.safe_load(config.read_text(encoding="utf-8"))
        own, limits, world = contents["options"], contents["limits"], contents["scenario"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{config}: not the configuration of a run: {error}") from None
    if options.steps is None and options.iterations is None and options.minutes is None:
        options = replace(options, **limits)
    return resumed(options, own, str(config)), parse_scenario(world, str(config))
