"""Public request traces: arrival times and lengths of requests.

A file is read block by block, up to the end of its window. A bad file is refused. The message gives the file, line, column and
value, and what to do about it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from rllib_envs.errors import InputError
from rllib_envs.scenario import TraceFile
from rllib_envs.workload.given_classes import GivenClasses
from rllib_envs.workload.ticks import grid_tick_s, is_quantised
from rllib_envs.workload.trace_files import Block, read_blocks
from rllib_envs.workload.trace_formats import recognise

FAILED, EMPTY = "failed", "empty"
"""Reasons to leave out a row: no output tokens; no prompt tokens."""

_MAX_REQUESTS = 50_000_000  # of a window: 0.8 GB
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """The M requests of a trace's window. The arrays are read-only, so that a trace can be shared."""

    arrival_s: NDArray[np.float64]  # (M,) ascending (equal times may repeat), seconds from the start of the window
    prompt_tokens: NDArray[np.int32] | None  # (M,) >= 1; None: the file has no such column
    output_tokens: NDArray[np.int32] | None  # (M,) >= 1; None: the file has no such column
    classes: GivenClasses | None  # service classes of the requests; None: the file has no such column
    skipped: Mapping[str, int]  # rows of the window left out, by reason: FAILED, EMPTY
    tick_s: float | None  # a replay spreads arrivals uniformly within a tick of this length, s; None: it does not
    format: str  # azure, mooncake, burstgpt or csv
    source: str  # the file

    @property
    def rate_rps(self) -> float:
        """Mean rate, requests/s: the reciprocal of the mean gap. NaN if all requests have the same time."""
        span_s = self.arrival_s[-1] - self.arrival_s[0]
        return float((len(self.arrival_s) - 1) / span_s) if span_s > 0 else float("nan")

    @property
    def gap_cv(self) -> float:
        """Coefficient of variation of the gaps between arrivals. NaN if all requests have the same time."""
        return float(np.std(np.diff(self.arrival_s)) * self.rate_rps) if len(self.arrival_s) > 1 else float("nan")


def read_trace(spec: TraceFile) -> Trace:
    """Read the window of a trace file, plain or gzip, and nothing after it.

    Formats: ``azure`` (Azure/AzurePublicDataset, LLM inference traces: CSV with ISO times), ``mooncake`` (kvcache-ai/Mooncake:
    JSON lines, times in ms), ``burstgpt`` (HPMLL/BurstGPT: CSV, times in s), ``csv`` (columns named in ``spec``; seconds if the
    first time is a number, else ISO 8601) and ``auto``: detected from the columns, ``csv`` if ``spec`` names some. Times without
    an offset are UTC; ISO times are kept to the microsecond. The trace starts at its first row; the window is
    ``[start_s, start_s + duration_s)`` from there. Rows with 0 prompt tokens or 0 output tokens are left out and counted: a
    served request has at least one of each.

    Raises:
        InputError: the file cannot be read, is of another format or lacks a column. A cell before the window's end is no valid
            time or token count, or a time is out of order. The window has no request or more than 50 million. The times have no
            grid and ``spec.jitter`` is true.
    """
    from rllib_envs.workload.trace_rows import RowReader  # here: loading Arrow takes .3 s and 30 MB, and few scenarios replay

    stop_s = math.inf if spec.duration_s is None else spec.start_s + spec.duration_s
    times, prompts, outputs, services = _Column(np.float64), _Column(np.int32), _Column(np.int32), _Column(np.int32)
    skipped: dict[str, int] = {FAILED: 0, EMPTY: 0}
    with closing(read_blocks(spec.path)) as blocks:
        layout, first = recognise(spec, next(blocks, Block(1, b"")))
        reader = RowReader(spec.path, layout, chain([first], blocks), stop_s)
        for rows in reader:
            kept = rows.time_s >= spec.start_s
            for reason, tokens in ((FAILED, rows.output), (EMPTY, rows.prompt)):
                if tokens is not None:
                    skipped[reason] += int(np.count_nonzero(kept & (tokens == 0)))
                    kept &= tokens > 0
            times.extend(rows.time_s[kept])
            if len(times) > _MAX_REQUESTS:
                raise InputError(f"{spec.path}: more than {_MAX_REQUESTS} requests in the window: choose a shorter duration_s")
            if rows.prompt is not None:
                prompts.extend(rows.prompt[kept])
            if rows.output is not None:
                outputs.extend(rows.output[kept])
            if rows.service is not None:
                services.extend(rows.service[kept])
    if not reader.begun:
        raise InputError(f"{spec.path}: line {first.line - 1}: a header and no rows: a trace has at least one request")
    if len(times) == 0:
        raise InputError(f"{spec.path}: {_empty_window(spec, skipped, reader.last_s, stop_s)}")
    arrival_s = times.whole()
    arrival_s -= spec.start_s
    return Trace(
        arrival_s=_frozen(arrival_s),
        prompt_tokens=None if layout.prompt is None else _frozen(prompts.whole()),
        output_tokens=None if layout.output is None else _frozen(outputs.whole()),
        classes=None if layout.service is None else _given(spec.path, layout.service, reader.classes, services.whole()),
        skipped=skipped,
        tick_s=_jitter_tick_s(spec, arrival_s),
        format=layout.format,
        source=spec.path,
    )


def _given(path: str, column: str, lines: Mapping[str, int], number: NDArray[np.int32]) -> GivenClasses:
    where = tuple(f"{path}: line {line}, column {column!r}" for line in lines.values())
    return GivenClasses(number=_frozen(number), names=tuple(lines), where=where)


class _Column(Generic[_Scalar]):
    """An array that grows in place, to avoid a second copy in memory."""

    def __init__(self, dtype: type[_Scalar]) -> None:
        self._values = np.empty(1 << 12, dtype)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def extend(self, values: NDArray[_Scalar]) -> None:
        """Append the values (m,)."""
        size = self._size + len(values)
        if size > len(self._values):
            self._values.resize(size + size // 4, refcheck=False)
        self._values[self._size : size] = values
        self._size = size

    def whole(self) -> NDArray[_Scalar]:
        """The array itself; nothing may be appended afterwards."""
        self._values.resize(self._size, refcheck=False)
        return self._values


def _empty_window(spec: TraceFile, skipped: Mapping[str, int], last_s: float, stop_s: float) -> str:
    left_out = ", ".join(f"{count} {reason}" for reason, count in skipped.items() if count)
    where = f"the next row is at {last_s:.6g} s" if last_s >= stop_s else f"choose a window within the trace's {last_s:.6g} s"
    window = f"start_s = {spec.start_s}, duration_s = {spec.duration_s}"
    return f"no request in the window {window}{f' ({left_out} left out)' if left_out else ''}: {where}"


def _jitter_tick_s(spec: TraceFile, arrival_s: NDArray[np.float64]) -> float | None:
    if spec.jitter is False or (spec.jitter is None and not is_quantised(arrival_s)):
        return None
    tick_s = grid_tick_s(arrival_s)
    if tick_s is None:
        raise InputError(
            f"{spec.path}: jitter = True, but the times of the window lie on no grid of 0.01 s or more: leave jitter out"
        )
    return tick_s


def cached_trace(spec: TraceFile) -> Trace:
    """``read_trace``, cached until the file changes: many episodes replay the same one."""
    path = Path(spec.path)
    if not path.is_file():
        return read_trace(spec)  # raises the error
    stat = path.stat()
    return _remembered(spec, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _remembered(spec: TraceFile, mtime_ns: int, size: int) -> Trace:
    return read_trace(spec)


def _frozen(values: NDArray[_Scalar]) -> NDArray[_Scalar]:
    values.setflags(write=False)
    return values
