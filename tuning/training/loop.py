"""The loop of a training run: iterate until a limit, log, validate and save."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.rllib.checkpoint import learner_state, restore_learner, router_of
from rllib_envs.errors import InputError
from tuning.training.log import Iteration, RunLog, describe, summarise
from tuning.training.signals import endings, leave_lost_streams
from tuning.training.validation import Difference, Validator

if TYPE_CHECKING:
    from ray.rllib.algorithms.algorithm import Algorithm

_CHECKPOINT_INTERVAL_S = 60.0
_PATIENCE_S = 10  # after SIGTERM or SIGHUP: who sends it soon sends SIGKILL


@dataclass(frozen=True, slots=True, kw_only=True)
class StopLimits:
    """When a run ends: at the first of those that are given."""

    steps: int | None = None  # environment steps since the run began
    iterations: int | None = None  # since the run began
    minutes: float | None = None  # since this start


class Diverged(Exception):
    """Training cannot go on: a loss or gradient is not finite."""


class _Overdue(BaseException):
    """The current iteration takes too long to wait for. No code below should handle this as an error."""


@dataclass(slots=True)
class _Asked:
    """Signals that have arrived."""

    to_stop: signal.Signals | None = None
    overdue: bool = False  # the time to stop in is up


class Trainer:
    """Iterates, reports, saves.

    Args:
        algorithm: in the state to continue from.
        log: the log so far, to extend.
        limits: when to end.
        steps_per_iteration: nominal.
        validator: compares the router with a heuristic.
        validate_every: iterations from one comparison to the next; 0 for none.
        save: writes a checkpoint of so many iterations and steps and returns its folder, or raises an ``InputError``.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        log: RunLog,
        limits: StopLimits,
        *,
        steps_per_iteration: int,
        validator: Validator,
        validate_every: int,
        save: Callable[[int, int], Path],
    ) -> None:
        self._algorithm, self._log, self._limits = algorithm, log, limits
        self._steps_per_iteration = steps_per_iteration
        self._validator, self._validate_every = validator, validate_every
        self._write_checkpoint = save
        self._start_s = self._saved_s = time.monotonic()
        self._began_at = log.records[-1].steps if log.records else 0
        self.saved: Path | None = None

    def train(self) -> signal.Signals | None:
        """Iterate until a limit or a signal, which is returned. Ends with a checkpoint.

        SIGTERM and SIGHUP wait some seconds for the current iteration, then abandon it. A failed checkpoint on the way is
        reported and tried again after the usual interval.

        Raises:
            Diverged: a loss or gradient is not finite; the state before that iteration is saved, if it can be.
            InputError: the last checkpoint cannot be written.
        """
        with _deferred_signals() as asked:
            while self._left_s() > 0 and asked.to_stop is None:
                good = learner_state(self._algorithm)
                try:
                    self._iterate()
                except FloatingPointError as error:
                    restore_learner(self._algorithm, good)
                    self._save_if_possible("no newer one can be written")
                    raise Diverged(f"iteration {len(self._log.records) + 1}: {error}") from None
                except BaseException:  # what Ray makes of an interruption is an error of its own
                    if not asked.overdue:
                        raise
                    restore_learner(self._algorithm, good)
                if time.monotonic() - self._saved_s > _CHECKPOINT_INTERVAL_S:
                    self._save_if_possible(f"training goes on, the next is due in {_CHECKPOINT_INTERVAL_S:g} s")
            self._save()
            return asked.to_stop

    def _iterate(self) -> None:
        before_s = time.monotonic()
        result: dict[str, Any] = self._algorithm.train()
        number = len(self._log.records) + 1
        validation = self._validate(number)
        signal.alarm(0)  # nothing to give up any more: what follows is short
        seconds = time.monotonic() - before_s
        record = summarise(result, number, self._elapsed_s() + seconds, seconds, validation)
        self._log.add(record, result)
        print(describe(record, self._steps_per_s(), self._left_s()), flush=True)

    def _validate(self, iteration: int) -> dict[str, Difference] | None:
        if not self._validate_every or iteration % self._validate_every:
            return None
        return self._validator.compare(router_of(self._algorithm))

    def _elapsed_s(self) -> float:
        return self._log.records[-1].elapsed_s if self._log.records else 0.0

    def _steps_per_s(self) -> float:
        """Speed since this start."""
        return (self._log.records[-1].steps - self._began_at) / (time.monotonic() - self._start_s)

    def _left_s(self) -> float:
        """Estimated seconds until the first of the limits."""
        limits, records = self._limits, self._log.records
        last: Iteration | None = records[-1] if records else None
        steps = last.steps if last else 0
        new = steps - self._began_at
        step_s = (time.monotonic() - self._start_s) / new if new else 1.0
        left = [float("inf")]
        if limits.minutes is not None:
            left.append(60 * limits.minutes - (time.monotonic() - self._start_s))
        if limits.iterations is not None:
            left.append((limits.iterations - len(records)) * self._steps_per_iteration * step_s)
        if limits.steps is not None:
            left.append((limits.steps - steps) * step_s)
        return min(left)

    def _save(self) -> None:
        records = self._log.records
        self.saved = self._write_checkpoint(len(records), records[-1].steps if records else 0)
        self._saved_s = time.monotonic()

    def _save_if_possible(self, otherwise: str) -> None:
        """Save; if that fails, report it and what it means."""
        try:
            self._save()
        except InputError as error:
            print(f"edgeroute: warning: {error}; {otherwise}", file=sys.stderr, flush=True)
            self._saved_s = time.monotonic()


@contextmanager
def _deferred_signals() -> Generator[_Asked]:
    """Defer SIGINT, SIGTERM and SIGHUP until the end of the iteration; a second one takes effect at once.

    Outside the main thread signals cannot be caught, so nothing is deferred.
    """
    asked = _Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    caught = [signal.SIGINT, *endings()]
    before = {number: signal.getsignal(number) for number in (*caught, signal.SIGALRM)}

    def ask(number: int, _: object) -> None:
        asked.to_stop = signal.Signals(number)
        for other in caught:
            signal.signal(other, before[other])
        if number != signal.SIGINT:
            signal.alarm(_PATIENCE_S)
        if number == signal.SIGHUP:
            leave_lost_streams()

    def give_up(*_: object) -> None:
        asked.overdue = True
        raise _Overdue

    for number in caught:
        signal.signal(number, ask)
    signal.signal(signal.SIGALRM, give_up)
    try:
        yield asked
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
