"""A copy of a decision log in the folder of a run, which then needs the log no more: a gateway goes on writing, and files go."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from rllib_envs.decision_log.reader import DecisionLog
from rllib_envs.decision_log.records import LoggedRequest, feedback_line, line_of, start_line
from tuning.run_dir.atomic import write_bytes

MOST_REQUESTS = 20_000
"""The last ones of a longer log are copied."""

_IN_A_FILE = 2000  # requests: a reader takes files of up to 64 MiB


def write_snapshot(log: DecisionLog, folder: Path) -> None:
    """Copy what fitting and comparing need of a log's requests: no prompts, scores or reasons.

    Raises:
        InputError: the folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)  # nobody else may read the log either
    kept = log.requests[-MOST_REQUESTS:]
    for number, first in enumerate(range(0, len(kept), _IN_A_FILE)):
        part = kept[first : first + _IN_A_FILE]
        judged = [(x, log.feedback[x.id]) for x in part if x.id in log.feedback]
        lines = [start_line(log.scenario, part[0].time), *map(_line, part)]
        lines += [feedback_line(x.id, score, x.time) for x, score in judged]
        write_bytes(folder / f"decisions-{number:04d}.jsonl", b"".join(lines))


def _line(request: LoggedRequest) -> bytes:
    return line_of(asdict(replace(request, text=None, scores=(), reasons="", load=(), shadow=None)))
