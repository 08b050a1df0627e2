"""One trial of a sweep: a training run in its own process, stepped by Ray Tune."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ray import tune

from models.export.manifest import manifest_in, private_copy
from models.rllib.checkpoint import ABOUT, find_checkpoint, read_checkpoint, restore_checkpoint, router_of, save_checkpoint
from tuning.output.tracking import Tracker, provenance, tracker
from tuning.run_dir.signature import check_signature, signed
from tuning.sweeps.plan import GPU_S, LATE, QOS, SECONDS, STEPS, TrialPlan, written_experiment
from tuning.sweeps.space import Settings
from tuning.training.log import summarise, tracked
from tuning.training.options import complete, to_mapping
from tuning.training.setup import about_run, algorithm_of, validator_of, variant_options
from tuning.training.variants import base_scenario, training_groups

_FIGURES = {QOS: "qos", LATE: "violation_rate", GPU_S: "gpu_s_per_request"}


class Trial(tune.Trainable):
    """Trains with the settings in Tune's ``config``; a step is an iteration, followed by validation."""

    def setup(self, config: Settings, plan: TrialPlan | None = None) -> None:
        """Build everything that the settings ask for."""
        assert plan is not None
        self._plan, self._stack = plan, ExitStack()
        torch.set_num_threads(1)
        folder = plan.folder / self.trial_name  # the working directory that Tune gives goes when the sweep ends
        options = complete(written_experiment(plan, config, folder))
        scenario = base_scenario(variant_options(options))
        groups = training_groups(scenario, variant_options(options), options.envs_per_runner)
        self._algorithm = self._stack.enter_context(algorithm_of(options, scenario, groups, 1))
        self._validator, self._about = validator_of(options, scenario), about_run(options, scenario, groups, 1)
        self._iterations, self._steps, self._elapsed_s = 0, 0, 0.0
        self._options, self._settings, self._track = options, dict(config), None

    def reset_config(self, new_config: Settings) -> bool:
        """Reuse this process for another trial: importing torch and RLlib takes longer than a short trial."""
        self.cleanup()
        self.setup(new_config)  # Tune adds the plan
        return True

    def step(self) -> dict[str, Any]:
        """One iteration."""
        before_s = time.monotonic()
        result: dict[str, Any] = self._algorithm.train()
        found = self._validator.compare(router_of(self._algorithm))
        seconds = time.monotonic() - before_s
        self._iterations += 1
        self._elapsed_s += seconds
        record = summarise(result, self._iterations, self._elapsed_s, seconds, found)
        self._steps = record.steps
        self._tracker().log(tracked(record, record.steps / self._elapsed_s), record.steps)
        figures = {name: _mean([one.figures.get(key, math.nan) for one in found.values()]) for name, key in _FIGURES.items()}
        return {**figures, STEPS: record.steps, SECONDS: self._elapsed_s}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the training state and the router, signed with the sweep's own key."""
        about = {**self._about, "iteration": self._iterations, "steps": self._steps, "elapsed_s": self._elapsed_s}
        sign = dict if self._plan.key is None else partial(signed, key=self._plan.key)
        save_checkpoint(Path(checkpoint_dir), self._algorithm, about, sign)

    def restore(self, checkpoint_path: Any) -> None:
        """Restore a checkpoint of Tune from a private copy of the files that the sweep signed.

        Tune would unpickle another file beside ours before it calls ``load_checkpoint``; the copy has none.

        Raises:
            InputError: it is damaged, or the sweep did not write it.
        """
        result = copy(checkpoint_path)
        with result.checkpoint.as_directory() as given:
            folder = find_checkpoint(Path(given))
            about, where = read_checkpoint(folder), folder / ABOUT
            if self._plan.key is not None:
                check_signature(about, where, trusted=self._plan.trusted, key=self._plan.key)
            with private_copy(folder, manifest_in(about, where), where, "checkpoint") as own:
                self._vouched, result.checkpoint = about, tune.Checkpoint.from_directory(own)
                super().restore(result)

    def load_checkpoint(self, checkpoint: str) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] (a folder, as it was saved)
        """Load the training state, as ``restore`` asks."""
        about = self._vouched
        restore_checkpoint(Path(checkpoint), about, self._algorithm)
        self._iterations, self._steps, self._elapsed_s = about["iteration"], about["steps"], about["elapsed_s"]

    def _tracker(self) -> Tracker:
        """The trial's tracker, begun with its first step, as Tune sets up processes that it may not use."""
        if self._track is None:
            config = {"settings": self._settings, "options": to_mapping(self._options), **self._about, **provenance()}
            folder = self._plan.folder / self.trial_name
            run = tracker(self._options.track, folder=folder, name=self.trial_name, job_type="trial", config=config, resume=True)
            self._track = self._stack.enter_context(run)
        return self._track

    def cleanup(self) -> None:
        """Stop the algorithm and what else was started."""
        self._stack.close()


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
