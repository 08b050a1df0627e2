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

import logging
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from models.rllib.checkpoint import find_checkpoint, load_router, read_checkpoint, restore_checkpoint, save_checkpoint
from models.rllib.env_groups import Group
from rllib_envs.errors import InputError
from rllib_envs.scenario import Observation, Scenario, parse_scenario
from rllib_envs.simulation import Simulation
from tuning.ray_session import ray_session
from tuning.storage import write_text
from tuning.training_algorithms import algorithm_config, network_spec
from tuning.training_curve import draw_curve
from tuning.training_log import LOG, RunLog, read_log
from tuning.training_loop import Diverged, Limits, Trainer
from tuning.training_options import Options, complete, defaults, definition, resumed
from tuning.training_worlds import MARGINAL, PAPER, WorldOptions, base_world, training_groups
from tuning.validation import Validator

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

__all__ = ["Options", "defaults", "load_router", "run"]

_SEED_STRIDE = 1_000_003  # from one start of a run to the next, so that a resumed one does not meet the same episodes again
_CONFIG, _CURVE = "config.yaml", "training.png"
_PAPER_SLOTS = {"running_slots": 10, "waiting_slots": 10}
_VALIDATION = {"seeds": 4, "requests": 1200}
_TAU = 0.035  # soft deadline of the roll-out: about what impact-greedy does best with, tuned load by load
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
    groups = training_groups(scenario, _world_options(options), options.envs_per_runner)
    records = [] if about is None else read_log(options.run_dir / LOG, about["iteration"])
    starts = 1 if about is None else about["starts"] + 1
    _compile_kernels(scenario)
    with (
        ray_session(options.address, options.num_env_runners or 0),
        _algorithm(options, scenario, groups, starts) as algorithm,
        RunLog(options.run_dir, records) as log,
    ):
        if checkpoint is not None:
            restore_checkpoint(checkpoint, algorithm)
        trainer = _trainer(options, scenario, algorithm, log, starts)
        try:
            asked = trainer.train()
        except Diverged as error:
            print(f"edgeroute: error: {error}; the state before it is {trainer.saved}", file=sys.stderr)
            return _EXIT_DIVERGED
        finally:
            if log.records:
                title = f"{options.algo} on {scenario.name}, load {options.load}, seed {options.seed}"
                draw_curve(options.run_dir / _CURVE, log.records, title)
    if asked:
        print(f"edgeroute: {asked.name}: {trainer.saved} is written, --resume goes on from there", file=sys.stderr)
        return _EXIT_INTERRUPTED if asked == signal.SIGINT else 0
    print(f"Written: {trainer.saved}, {options.run_dir / LOG}, {options.run_dir / _CURVE}")
    return 0


def _trainer(options: Options, scenario: Scenario, algorithm: Algorithm, log: RunLog, starts: int) -> Trainer:
    about = {
        "starts": starts,
        "algo": options.algo,
        "seed": options.seed,
        "observation": asdict(replace(scenario.observation, counterfactual=False)),
        "scenario": scenario.name,
        "fingerprint": scenario.fingerprint(),
    }

    def save(iteration: int, steps: int) -> Path:
        return save_checkpoint(options.run_dir, algorithm, {"iteration": iteration, "steps": steps, **about})

    return Trainer(
        algorithm,
        log,
        Limits(steps=options.steps, iterations=options.iterations, minutes=options.minutes),
        steps_per_iteration=options.steps_in_iteration,
        validator=Validator(scenario, options.load, **({"seeds": 2, "requests": 20} if options.smoke else _VALIDATION)),
        validate_every=options.validate_every,
        save=save,
    )


def _world_options(options: Options) -> WorldOptions:
    paper = options.preset == "paper"
    observation = Observation(
        whatif=options.spec.impact,
        whatif_tau=_TAU,
        counterfactual=not paper,
        calibrate=options.calibrate,
        **(_PAPER_SLOTS if paper else {}),
    )
    return WorldOptions(
        scenario=options.scenario,
        load=options.load,
        requests=options.requests,
        fleets=options.fleets,
        variation=options.variation,
        observation=observation,
        reward=PAPER if paper else MARGINAL,
    )


def _begin(options: Options) -> tuple[Options, Scenario]:
    """Lay out a new run directory."""
    if (options.run_dir / "checkpoints").exists():
        raise InputError(f"{options.run_dir}: holds a run already: --resume goes on with it, another --run-dir begins anew")
    worlds = _world_options(options)
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


def _compile_kernels(scenario: Scenario) -> None:
    """Take one step, so that compiling counts neither as training time nor for each worker process."""
    simulation = Simulation(scenario, 1)
    simulation.start(0, 0)
    simulation.step(np.zeros(1, np.int64))


@contextmanager
def _algorithm(options: Options, scenario: Scenario, groups: list[Group], starts: int) -> Generator[Algorithm]:
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    seed = options.seed + (starts - 1) * _SEED_STRIDE
    algorithm = algorithm_config(options, groups, network_spec(options, scenario), seed=seed).build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()
