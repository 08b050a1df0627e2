"""Train a router: PPO over a small network that scores each expert from its own features.

It starts as the impact-greedy heuristic with scores as told, and learns what the impact estimate leaves out: above all what a
decision costs the requests still to come. A run has a folder with its configuration, progress, checkpoints and learning curve;
Ctrl-C stops it with a checkpoint, --resume goes on from there. A minute of training, and what it is worth:
edgeroute train --minutes 1 --run-dir runs/mine;
edgeroute evaluate --load light moderate heavy --routers best checkpoint:runs/mine
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from models.rllib.checkpoint import find_checkpoint, load_router, read_checkpoint, restore_checkpoint, save_checkpoint
from rllib_envs.errors import InputError
from rllib_envs.scenario import Reward, Scenario, load_scenario, parse_scenario
from rllib_envs.simulation import Simulation
from tuning.ray_session import ray_session
from tuning.storage import write_text
from tuning.training_log import Iteration, describe, draw_curve, read_log, summarise, to_line, write_log
from tuning.workloads import TraceOptions, make_workloads

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

__all__ = ["Options", "load_router", "run"]

_MODEL: dict[str, Any] = {"hidden": 64, "temperature": 0.015}
_SMOKE: dict[str, Any] = {"iterations": 2, "requests": 20, "envs_per_runner": 4, "steps_per_iteration": 64, "num_env_runners": 0}
_FIXED = ("scenario", "load", "requests", "envs_per_runner", "steps_per_iteration", "seed", "lr")
_DEFAULT_MINUTES = 10.0
_CHECKPOINT_INTERVAL_S = 60.0
_SEED_STRIDE = 1_000_003  # from one start of a run to the next, so that a resumed one does not meet the same episodes again
_CONFIG, _LOG, _CURVE = "config.yaml", "metrics.jsonl", "training.png"
_EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    scenario: str = "edge6"
    """Scenario: a preset (edge6, paper3, edgeN with N from 2 to 256) or a YAML file. Its reward and observation are set anew."""
    load: str = "mixed"
    """light, moderate, heavy, mixed (drawn for each episode), native, requests/s, or a share of the capacity (70%)."""
    run_dir: Path = Path("runs/train")
    """Folder of the run."""
    steps: int | None = None
    """Stop after so many decisions, counted from the beginning of the run."""
    iterations: int | None = None
    """Stop after so many iterations, counted from the beginning of the run."""
    minutes: float | None = None
    """Stop after so many minutes, counted from this start. Default, if no limit is given: 10."""
    num_env_runners: int | None = None
    """Worker processes that step environments; 0 steps them in the process that learns. Default: 0 on up to 2 cores, else
    one for each core but one."""
    envs_per_runner: int = 64
    """Environments in each, stepped together."""
    requests: int = 500
    """Requests in a training episode."""
    steps_per_iteration: int = 4096
    """Decisions in an iteration."""
    seed: int = 0
    """Seed of weights, episodes and exploration. Without worker processes, the same seed gives the same weights."""
    lr: float = 1e-3
    """Learning rate."""
    address: str = "local"
    """Ray: local starts one for this run, auto or a URL attaches to a running cluster."""
    resume: bool = False
    """Go on with the run in the folder. Scenario, seed and all else that defines the run are taken from there."""
    smoke: bool = False
    """A tiny run that takes seconds."""


def run(options: Options) -> int:
    """Train, print a line an iteration, and leave a run directory.

    Returns:
        0; 130 after SIGINT, with a checkpoint written.

    Raises:
        InputError: an option or scenario that is not valid; a run directory that is taken, missing or damaged.
    """
    options = _complete(options)
    checkpoint = find_checkpoint(options.run_dir) if options.resume else None
    options, scenario = _begin(options) if checkpoint is None else _continue(options)
    about = None if checkpoint is None else read_checkpoint(checkpoint)
    records = [] if about is None else read_log(options.run_dir / _LOG, about["iteration"])
    starts = 1 if about is None else about["starts"] + 1
    _compile_kernels(scenario)
    with ray_session(options.address, options.num_env_runners or 0), _algorithm(options, scenario, starts) as algorithm:
        if checkpoint is not None:
            restore_checkpoint(checkpoint, algorithm)
        write_log(options.run_dir / _LOG, records)
        trainer = _Trainer(options, scenario, algorithm, records, starts)
        interrupted = trainer.train()
    together = options.envs_per_runner * max(options.num_env_runners or 0, 1)
    episode = max(round(options.requests * together / options.steps_per_iteration), 1)
    draw_curve(options.run_dir / _CURVE, records, f"{scenario.name}, load {options.load}, seed {options.seed}", episode)
    if interrupted:
        print(f"edgeroute: interrupted; {trainer.saved} is written, --resume goes on from there", file=sys.stderr)
        return _EXIT_INTERRUPTED
    print(f"Written: {trainer.saved}, {options.run_dir / _LOG}, {options.run_dir / _CURVE}")
    return 0


class _Trainer:
    """The loop, and when it ends."""

    def __init__(self, options: Options, scenario: Scenario, algorithm: Algorithm, records: list[Iteration], starts: int) -> None:
        self._options, self._scenario, self._algorithm, self._starts = options, scenario, algorithm, starts
        self._records = records
        self._start_s = self._saved_s = time.monotonic()
        self.saved: Path | None = None

    def train(self) -> bool:
        """Iterate until a limit is reached; True if SIGINT came first. Ends with a checkpoint."""
        with _deferred_interrupt() as interrupted, (self._options.run_dir / _LOG).open("a", encoding="utf-8") as log:
            while self._left_s() > 0 and not interrupted.is_set():
                record = self._iterate()
                log.write(to_line(record))
                log.flush()
                print(describe(record, self._steps_per_s(), self._left_s()), flush=True)
                if time.monotonic() - self._saved_s > _CHECKPOINT_INTERVAL_S:
                    self._save()
            self._save()
            return interrupted.is_set()

    def _iterate(self) -> Iteration:
        before_s = time.monotonic()
        result = self._algorithm.train()
        seconds = time.monotonic() - before_s
        elapsed_s = seconds + (self._records[-1].elapsed_s if self._records else 0.0)
        self._records.append(summarise(result, len(self._records) + 1, elapsed_s, seconds))
        return self._records[-1]

    def _steps_per_s(self) -> float:
        """Speed of the last iteration."""
        records = self._records
        return (records[-1].steps - (records[-2].steps if len(records) > 1 else 0)) / records[-1].seconds

    def _left_s(self) -> float:
        """Seconds until the first of the limits, as far as can be told."""
        options, records = self._options, self._records
        last = records[-1] if records else None
        iteration_s = last.seconds if last else 1.0
        left: list[float] = []
        if options.minutes is not None:
            left.append(60 * options.minutes - (time.monotonic() - self._start_s))
        if options.iterations is not None:
            left.append((options.iterations - len(records)) * iteration_s)
        if options.steps is not None:
            left.append((options.steps - (last.steps if last else 0)) / options.steps_per_iteration * iteration_s)
        return min(left)

    def _save(self) -> None:
        about = {
            "iteration": len(self._records),
            "steps": self._records[-1].steps if self._records else 0,
            "starts": self._starts,
            "model": {"whatif": True, **_MODEL},
            "observation": asdict(replace(self._scenario.observation, counterfactual=False)),
            "scenario": self._scenario.name,
            "fingerprint": self._scenario.fingerprint(),
        }
        self.saved = save_checkpoint(self._options.run_dir, self._algorithm, about)
        self._saved_s = time.monotonic()


def _complete(options: Options) -> Options:
    """The options with presets and defaults filled in."""
    if options.smoke:
        options = replace(options, **{**_SMOKE, "iterations": options.iterations or _SMOKE["iterations"]})
    if options.steps is None and options.iterations is None and options.minutes is None:
        options = replace(options, minutes=_DEFAULT_MINUTES)
    if options.num_env_runners is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        options = replace(options, num_env_runners=0 if cores <= 2 else cores - 1)
    for name in ("steps", "iterations", "minutes", "envs_per_runner", "steps_per_iteration", "lr"):
        value = getattr(options, name)
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{name.replace('_', '-')} = {value}: must be positive")
    for name in ("num_env_runners", "seed"):
        if getattr(options, name) < 0:
            raise InputError(f"{name.replace('_', '-')} = {getattr(options, name)}: must be >= 0")
    return options


def _begin(options: Options) -> tuple[Options, Scenario]:
    """Lay out a new run directory."""
    config = options.run_dir / _CONFIG
    if (options.run_dir / "checkpoints").exists():
        raise InputError(f"{options.run_dir}: holds a run already: --resume goes on with it, another --run-dir begins anew")
    world = load_scenario(options.scenario)
    (workload,) = make_workloads(world, (options.load,), (), TraceOptions(), options.requests)
    scenario = replace(
        workload.scenario,
        reward=Reward(realised_qos=0.0, marginal_qos=1.0),
        observation=replace(workload.scenario.observation, whatif=True, counterfactual=True),
    )
    contents = {
        "options": {name: getattr(options, name) for name in _FIXED},
        "fingerprint": scenario.fingerprint(),
        "scenario": yaml.safe_load(scenario.to_yaml()),
    }
    write_text(config, yaml.safe_dump(contents, sort_keys=False))
    return options, scenario


def _continue(options: Options) -> tuple[Options, Scenario]:
    """The options and the scenario of the run in the folder."""
    config = options.run_dir / _CONFIG
    try:
        contents = yaml.safe_load(config.read_text(encoding="utf-8"))
        own = {name: contents["options"][name] for name in _FIXED}
        scenario = parse_scenario(contents["scenario"], str(config))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise InputError(f"{config}: not the configuration of a run: {error}") from None
    usual = Options()
    for name, value in own.items():
        given = getattr(options, name)
        if given not in (value, getattr(usual, name)) and not options.smoke:
            raise InputError(f"{name.replace('_', '-')} = {given}: a resumed run keeps its own, which is {value}")
    return replace(options, **own), scenario


def _compile_kernels(scenario: Scenario) -> None:
    """Take one step, so that compiling counts neither as training time nor for each worker process."""
    simulation = Simulation(scenario, 1)
    simulation.start(0, 0)
    simulation.step(np.zeros(1, np.int64))


@contextmanager
def _algorithm(options: Options, scenario: Scenario, starts: int) -> Generator[Algorithm]:
    from models.rllib.ppo import ppo_config

    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    algorithm = ppo_config(
        scenario,
        seed=options.seed + (starts - 1) * _SEED_STRIDE,
        lr=options.lr,
        env_runners=options.num_env_runners or 0,
        envs_per_runner=options.envs_per_runner,
        steps=options.steps_per_iteration,
        model=_MODEL,
    ).build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()


@contextmanager
def _deferred_interrupt() -> Generator[threading.Event]:
    """SIGINT sets the event, to be looked at between iterations; a second one interrupts at once."""
    asked = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def ask(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
