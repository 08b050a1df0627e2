"""The table of a sweep's trials, printed while they run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ray.tune import Callback

from tuning.output.tables import markdown_table, show_setting
from tuning.sweeps.plan import LATE, QOS, SECONDS, STEPS

_INTERVAL_S = 20.0


class SweepTable(Callback):
    """Prints trials, varied settings, QoS, late requests, steps and time, from time to time and at the end.

    Args:
        paths: of the settings.
        iterations: of a trial.
    """

    def __init__(self, paths: Sequence[str], iterations: int) -> None:
        self._paths, self._iterations = list(paths), iterations
        self._shown_s = 0.0

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        """Print the table, unless it was printed recently."""
        if time.monotonic() - self._shown_s >= _INTERVAL_S:
            self._show(trials)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Print the last state."""
        self._show(trials)

    def _show(self, trials: list[Any]) -> None:
        self._shown_s = time.monotonic()
        rows = [self._row(trial) for trial in sorted(trials, key=str)]
        print(markdown_table(["trial", "state", *self._paths, "iteration", "QoS", "late, %", "steps", "s"], rows, names=2))
        print(flush=True)

    def _row(self, trial: Any) -> list[str]:
        result: dict[str, Any] = trial.last_result or {}
        settings = [show_setting(trial.config.get(path)) for path in self._paths]
        if QOS not in result:
            return [str(trial), trial.status.lower(), *settings, f"0/{self._iterations}", "", "", "", ""]
        return [
            str(trial),
            trial.status.lower(),
            *settings,
            f"{result['training_iteration']}/{self._iterations}",
            f"{result[QOS]:.4f}",
            f"{100 * result[LATE]:.2f}",
            f"{result[STEPS]:,}",
            f"{result[SECONDS]:.0f}",
        ]
