"""Readers for public request traces: when requests came, and how long they were.

Every reader refuses a bad file with the file, line, column and value, and what to do about it.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from rllib_envs.errors import InputError
from rllib_envs.scenario import TraceFile
from rllib_envs.workload.ticks import grid_tick_s, is_quantised

_COLUMNS = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "mooncake": ("timestamp", "input_length", "output_length"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
}
_MAX_TOKENS = np.iinfo(np.int32).max
_Scalar = TypeVar("_Scalar", bound=np.generic)
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trace:
    """The M requests of a trace's window. The arrays are read-only, so that a trace can be shared."""

    arrival_s: NDArray[np.float64]  # (M,) ascending (equal times may repeat), seconds from the start of the window
    prompt_tokens: NDArray[np.int32] | None  # (M,) >= 1; None: the file has no such column
    output_tokens: NDArray[np.int32] | None  # (M,) >= 0; None: the file has no such column
    skipped: int  # failed requests left out of the window (BurstGPT: no response tokens)
    tick_s: float | None  # a replay spreads arrivals uniformly within a tick of this length, s; None: it leaves them as they are
    source: str  # the file

    @property
    def rate_rps(self) -> float:
        """Mean rate, requests/s: the reciprocal of the mean gap. NaN where all requests come at one time."""
        span_s = self.arrival_s[-1] - self.arrival_s[0]
        return float((len(self.arrival_s) - 1) / span_s) if span_s > 0 else float("nan")

    @property
    def gap_cv(self) -> float:
        """Coefficient of variation of the gaps between arrivals. NaN where all requests come at one time."""
        return float(np.std(np.diff(self.arrival_s)) * self.rate_rps) if len(self.arrival_s) > 1 else float("nan")


def read_trace(spec: TraceFile) -> Trace:
    """Read a trace file, plain or gzip, and cut out its window.

    Formats: ``azure`` (Azure/AzurePublicDataset, LLM inference traces: CSV with ISO times), ``mooncake`` (kvcache-ai/Mooncake:
    JSON lines, times in ms), ``burstgpt`` (HPMLL/BurstGPT: CSV, times in s; rows with 0 response tokens are failed requests, left
    out and counted) and ``csv`` (columns named in ``spec``; seconds if the first time is a number, else ISO 8601). Times without
    an offset are UTC; they are kept to the microsecond. The trace starts at its first row; the window is
    ``[start_s, start_s + duration_s)`` from there.

    Raises:
        InputError: the file cannot be read, lacks a column, holds a cell that is no valid time or token count, is not sorted
            by time, has no request in the window, or no grid of times where ``spec.jitter`` is true.
    """
    own = (spec.time_column, spec.prompt_column, spec.output_column)
    time_column, prompt_column, output_column = _COLUMNS.get(spec.format, own)
    named = [column for column in (time_column, prompt_column, output_column) if column is not None]
    parse = _jsonl_table if spec.format == "mooncake" else _csv_table
    table = parse(spec.path, _read_text(spec.path), named)
    times = _times_s(table, time_column, spec.format)
    output = None if output_column is None else _tokens(table, output_column)
    served = output > 0 if spec.format == "burstgpt" and output is not None else np.ones(len(times), dtype=bool)
    prompt = None if prompt_column is None else _tokens(table, prompt_column)
    if prompt is not None and prompt_column is not None:
        _refuse(table, prompt_column, served & (prompt < 1), "a prompt has at least 1 token: correct or remove the row")
    inside = times >= spec.start_s
    if spec.duration_s is not None:
        inside &= times < spec.start_s + spec.duration_s
    kept = inside & served
    if not kept.any():
        raise InputError(
            f"{spec.path}: no request in the window start_s = {spec.start_s}, duration_s = {spec.duration_s} "
            f"({np.count_nonzero(inside)} failed left out): choose a window within the trace's {times[-1]:.6g} s"
        )
    arrival_s = times[kept] - spec.start_s
    return Trace(
        arrival_s=_frozen(arrival_s),
        prompt_tokens=None if prompt is None else _frozen(prompt[kept]),
        output_tokens=None if output is None else _frozen(output[kept]),
        skipped=int(np.count_nonzero(inside & ~served)),
        tick_s=_jitter_tick_s(spec, arrival_s),
        source=spec.path,
    )


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
    """``read_trace``, remembered for as long as the file does not change: many episodes replay the same one."""
    path = Path(spec.path)
    if not path.is_file():
        return read_trace(spec)  # raises what is wrong
    stat = path.stat()
    return _remembered(spec, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=8)
def _remembered(spec: TraceFile, mtime_ns: int, size: int) -> Trace:
    return read_trace(spec)


def _frozen(values: NDArray[_Scalar]) -> NDArray[_Scalar]:
    values.setflags(write=False)
    return values


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The cells of a file as text, by column, and the line that each row comes from."""

    path: str
    lines: list[int]
    cells: dict[str, Sequence[str]]


def _read_text(path: str) -> str:
    try:
        raw = Path(path).read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file: give the path of a trace file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory: give the path of one trace file in it") from None
    except EOFError:
        raise InputError(f"{path}: the gzip data ends too early: download or copy the file again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip data ({error}): download or copy the file again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        bad = error.object
        line, start = bad.count(b"\n", 0, error.start) + 1, bad.rfind(b"\n", 0, error.start) + 1
        where = f"{path}: line {line}, column {error.start - start + 1}"
        raise InputError(f"{where}: byte 0x{bad[error.start]:02x} is not UTF-8: save the file as UTF-8") from None
    if not text.strip():
        raise InputError(f"{path}: the file is empty: a trace has at least one request")
    return text


def _csv_table(path: str, text: str, named: list[str]) -> _Table:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines: list[int] = []
    rows: list[list[str]] = []
    try:
        for row in reader:
            if row:
                lines.append(reader.line_num)
                rows.append(row)
    except csv.Error as error:
        raise InputError(f"{path}: line {reader.line_num}: not CSV: {error}") from None
    header = [name.strip() for name in rows[0]]
    for name in named:
        if header.count(name) != 1:
            raise InputError(f"{path}: line {lines[0]}: {_missing(name, header)}")
    if len(rows) == 1:
        raise InputError(f"{path}: line {lines[0]}: a header and no rows: a trace has at least one request")
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(header):
            raise InputError(
                f"{path}: line {line}: {len(row)} cells for the header's {len(header)} columns: {_short(','.join(row))!r}"
            )
    columns = dict(zip(header, zip(*rows[1:], strict=True), strict=False))
    return _Table(path=path, lines=lines[1:], cells={name: columns[name] for name in named})


def _jsonl_table(path: str, text: str, named: list[str]) -> _Table:
    lines: list[int] = []
    cells: dict[str, list[str]] = {name: [] for name in named}
    for line, source in enumerate(text.split("\n"), 1):
        if not source.strip():
            continue
        try:
            record = json.loads(source)
        except ValueError as error:  # JSONDecodeError, or an integer too long to convert
            where = f"{path}: line {line}, column {getattr(error, 'colno', 1)}"
            raise InputError(f"{where}: not JSON ({getattr(error, 'msg', error)}): {_short(source)!r}") from None
        if not isinstance(record, dict):
            raise InputError(f"{path}: line {line}: must be a JSON object with {', '.join(named)}: {_short(source)!r}")
        for name in named:
            if name not in record:
                raise InputError(f"{path}: line {line}: {_missing(name, list(record))}")
            cells[name].append(json.dumps(record[name]))
        lines.append(line)
    return _Table(path=path, lines=lines, cells={**cells})


def _missing(name: str, present: list[str]) -> str:
    if name in present:
        return f"column {name!r} comes {present.count(name)} times: it must come once"
    folded = {other.lower(): other for other in present}
    near = difflib.get_close_matches(name.lower(), folded, n=1, cutoff=0.0)
    hint = f"; nearest: {folded[near[0]]!r}" if near else ""
    return f"no column {name!r}; the file has {_short(', '.join(map(repr, present)), 400)}{hint}"


def _times_s(table: _Table, column: str, trace_format: str) -> NDArray[np.float64]:
    """Seconds from the first row, ascending."""
    if trace_format == "azure" or (trace_format == "csv" and not _parses(float, table.cells[column][0])):
        rule = "must be an ISO 8601 time" + (" or a number of seconds" if trace_format == "csv" else "")
        stamps = _parsed(table, column, _utc, rule)
        times = np.array([(stamp - stamps[0]).total_seconds() for stamp in stamps])
    else:
        rule = f"must be a finite number of {'milliseconds' if trace_format == 'mooncake' else 'seconds'}, at least 0"
        times = np.array(_parsed(table, column, float, rule))
        _refuse(table, column, ~(np.isfinite(times) & (times >= 0)), rule)
        times = (times - times[0]) * (1e-3 if trace_format == "mooncake" else 1.0)
    falls = np.concatenate([[False], np.diff(times) < 0])
    _refuse(table, column, falls, "is earlier than the row before: sort the rows by time")
    return times


def _tokens(table: _Table, column: str) -> NDArray[np.int32]:
    rule = f"must be a whole number of tokens from 0 to {_MAX_TOKENS}"
    tokens = np.array(_parsed(table, column, float, rule))
    good = (tokens >= 0) & (tokens <= _MAX_TOKENS)  # NaN is in no range
    _refuse(table, column, ~good | (np.floor(tokens) != tokens), rule)
    return tokens.astype(np.int32)


def _parsed(table: _Table, column: str, parse: Callable[[str], _Value], rule: str) -> list[_Value]:
    cells = table.cells[column]
    try:
        return list(map(parse, cells))
    except ValueError:
        row = next(row for row, cell in enumerate(cells) if not _parses(parse, cell))
        raise _error(table, column, row, rule) from None


def _parses(parse: Callable[[str], object], cell: str) -> bool:
    try:
        parse(cell)
    except ValueError:
        return False
    return True


def _utc(cell: str) -> datetime:
    stamp = datetime.fromisoformat(cell.strip())
    return stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)


def _refuse(table: _Table, column: str, bad: NDArray[np.bool_], rule: str) -> None:
    if bad.any():
        raise _error(table, column, int(bad.argmax()), rule)


def _error(table: _Table, column: str, row: int, rule: str) -> InputError:
    return InputError(f"{table.path}: line {table.lines[row]}, column {column!r}: {_short(table.cells[column][row])!r} {rule}")


def _short(text: str, limit: int = 80) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."
