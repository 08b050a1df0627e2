"""Log a training run: a record an iteration, a printed line, TensorBoard's event file.

A full disk does not end training: records that cannot be written stay in memory and are written later.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self, cast

from rllib_envs.errors import InputError
from tuning.output.tracking import NO_TRACKER, Tracker
from tuning.run_dir.atomic import write_text
from tuning.training.validation import Difference

LOG, EVENTS = "metrics.jsonl", "tensorboard"
"""Names in a run directory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """One iteration, with the exploration of training."""

    iteration: int  # from 1
    steps: int  # environment steps since the run began
    elapsed_s: float  # training time since the run began
    seconds: float  # of this iteration
    qos: float  # mean reward of a decision: of the QoS it led to, and nothing else, by default
    late_share: float  # of the requests that finished or were dropped
    drop_share: float
    learner: dict[str, float] = field(default_factory=dict[str, float])  # metrics of the learner
    # load -> mean and error of the difference to the best heuristic, and figures of the router (``validation.Difference``)
    validation: dict[str, dict[str, float]] | None = None


def summarise(
    result: dict[str, Any], iteration: int, elapsed_s: float, seconds: float, validation: Mapping[str, Difference] | None
) -> Iteration:
    """Build the record of an iteration from RLlib's result."""
    sampled = result["env_runners"]
    decided = max(float(sampled["finished"] + sampled["dropped"] + sampled["rejected"]), 1.0)
    return Iteration(
        iteration=iteration,
        steps=int(sampled["num_env_steps_sampled_lifetime"]),
        elapsed_s=elapsed_s,
        seconds=seconds,
        qos=float(sampled["reward"]) / max(float(sampled["num_env_steps_sampled"] - sampled["too_long"]), 1.0),
        late_share=float(sampled["late"]) / decided,
        drop_share=float(sampled["dropped"] + sampled["rejected"]) / decided,
        learner=dict(_scalars(result.get("learners", {}).get("default_policy", {}))),
        validation=None if validation is None else {load: found.to_dict() for load, found in validation.items()},
    )


def describe(record: Iteration, steps_per_s: float, left_s: float) -> str:
    """One line on an iteration; ``left_s`` is the estimated time left."""
    minutes, seconds = divmod(round(max(left_s, 0.0)), 60)
    line = (
        f"iteration {record.iteration:4d}  steps {record.steps:9,d}  QoS {record.qos:.3f}  late {record.late_share:5.1%}  "
        f"drop {record.drop_share:5.1%}  {steps_per_s:6,.0f} steps/s  left {minutes:d}:{seconds:02d}"
    )
    if "search_generation" in record.learner:
        line += f"  price search, generation {record.learner['search_generation']:.0f}"
    if record.validation is None:
        return line
    found = "  ".join(f"{load} {d['mean']:+.4f} ±{d['error']:.4f}" for load, d in record.validation.items())
    return f"{line}\n    QoS over tuned impact-greedy, roughly: {found}"


class RunLog:
    """The records of a run: in ``metrics.jsonl``, in TensorBoard's event file with all that RLlib reports, and tracked."""

    def __init__(self, run_dir: Path, records: Sequence[Iteration], tracker: Tracker = NO_TRACKER) -> None:
        """Resume after ``records``; later records in the file are dropped.

        Raises:
            InputError: the folder cannot be written to.
        """
        self.records = list(records)
        self._path, self._tracker = run_dir / LOG, tracker
        self._rewrite()
        self._events = _Events(run_dir / EVENTS, purge_step=records[-1].steps + 1 if records else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._events.close()

    def add(self, record: Iteration, result: dict[str, Any]) -> None:
        """Add an iteration: its record, and RLlib's result."""
        before = self.records[-1].steps if self.records else 0
        self.records.append(record)
        if self._written:
            self._written = self._append(record)
        else:
            with suppress(InputError):
                self._rewrite()
        own = {key: value for key, value in asdict(record).items() if key != "learner"}
        shown = {"edgeroute": own, "rllib": {key: result[key] for key in _REPORTED if key in result}}
        self._events.add(dict(_scalars(shown)), record.steps)
        self._tracker.log(tracked(record, (record.steps - before) / record.seconds), record.steps)

    def sync(self) -> None:
        """Flush all records to the disk, so that a checkpoint survives a loss of power.

        Raises:
            InputError: they cannot be written.
        """
        if not self._written:
            self._rewrite()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def _append(self, record: Iteration) -> bool:
        """Whether the line is in the file."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(to_line(record))
        except OSError:
            return False
        return True

    def _rewrite(self) -> None:
        self._written = False
        write_text(self._path, "".join(to_line(record) for record in self.records))
        self._written = True


class _Events:
    """TensorBoard's event file, written at once: tensorboardX's own writer waits for ever for its thread, which a full disk ends.

    Args:
        folder: of the event files.
        purge_step: TensorBoard drops this step and later ones.
    """

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        self._folder, self._purge_step, self._files = folder, purge_step, 0
        self._writer: Any = None

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers if possible; after an error begin a new file, as the old one may end in half an event."""
        scalars = [{"tag": name, "simple_value": value} for name, value in values.items()]
        try:
            writer = self._open()
            writer.write(_event(step, summary={"value": scalars}))
            writer.flush()
        except OSError:
            self.close()

    def close(self) -> None:
        """Close the file; a later number opens another."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()
            self._writer = None

    def _open(self) -> Any:
        from tensorboardX.record_writer import RecordWriter  # here: who reads records need not wait for it

        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._files += 1
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{self._files}"
            self._writer = RecordWriter(str(self._folder / name))
            self._writer.write(_event(0, file_version="brain.Event:2"))
            if self._purge_step is not None:
                self._writer.write(_event(self._purge_step, session_log={"status": "START"}))
                self._purge_step = None
        return self._writer


def _event(step: int, **content: Any) -> bytes:
    """An event of TensorBoard's protocol."""
    from tensorboardX.proto import event_pb2

    return cast(Any, event_pb2).Event(wall_time=time.time(), step=step, **content).SerializeToString()


def to_line(record: Iteration) -> str:
    """The record as a line of JSON."""
    return json.dumps(asdict(record)) + "\n"


def read_log(path: Path, last: int) -> list[Iteration]:
    """The records up to iteration ``last``.

    Raises:
        InputError: the file cannot be read, or a line is not a record.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    records: list[Iteration] = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(Iteration(**json.loads(line)))
        except (ValueError, TypeError) as error:
            if number == len(lines) > last:
                break  # the process ended as it wrote this one
            raise InputError(f"{path}:{number}: not the record of an iteration: {error}") from None
    return [record for record in records if record.iteration <= last]


def tracked(record: Iteration, steps_per_s: float) -> dict[str, float]:
    """The numbers of a record as a tracker shows them, in groups."""
    own = {key: value for key, value in asdict(record).items() if key not in ("steps", "learner", "validation")}
    train = {**own, "steps_per_s": steps_per_s}
    return dict(_scalars({"train": train, "learner": record.learner, "validation": record.validation or {}}))


def _scalars(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers of nested dicts, by path."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{key}/")  # pyright: ignore[reportUnknownArgumentType]
        elif isinstance(value, bool) or not hasattr(value, "__float__"):
            continue
        elif getattr(value, "size", 1) == 1 and math.isfinite(float(value)):
            yield f"{prefix}{key}", float(value)


_REPORTED = ("env_runners", "learners", "timers", "perf")
