"""Rows of a trace, block by block: by Arrow if the block is regular, else one by one, up to the first error.

Both ways give the same figures. The second knows the line of each row, and reads no row after the window.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv
from pyarrow import json as arrow_json

from rllib_envs.errors import InputError
from rllib_envs.workload.trace_clocks import Clock, number
from rllib_envs.workload.trace_files import BLOCK_BYTES, Block
from rllib_envs.workload.trace_formats import Layout, decode, missing, short

_MAX_TOKENS = np.iinfo(np.int32).max
_MOST_CLASSES = 100  # of a scenario
_TOKENS = f"must be a whole number of tokens from 0 to {_MAX_TOKENS}"
_ROWS = 1 << 14  # at once, if they are read one by one


class Rows(NamedTuple):
    """m rows in the file's order."""

    time_s: NDArray[np.float64]  # (m,) ascending, seconds from the first row of the file
    prompt: NDArray[np.int32] | None  # (m,) tokens, >= 0; None: the layout has no such column
    output: NDArray[np.int32] | None  # (m,) tokens, >= 0; None: the layout has no such column
    service: NDArray[np.int32] | None  # (m,) number of the name of the service class, likewise


class RowReader:
    """The rows of a trace before ``stop_s``, checked. Rows from there on are neither read nor checked.

    Iterating raises InputError with the file, line, column and value. The causes: a cell that is no time or token count, a
    time before that of the row above, a row of another format.
    """

    def __init__(self, path: str, layout: Layout, blocks: Iterable[Block], stop_s: float) -> None:
        self.last_s = 0.0  # time of the last row read; not before stop_s if the file has such a row
        self.classes: dict[str, int] = {}  # names of service classes so far, with the line of the first row of each
        self._path, self._layout, self._stop_s = path, layout, stop_s
        self._blocks = _first_line_apart(blocks)  # it sets the origin of time; Arrow can parse all the others
        self._clock = Clock(layout.clock)
        self._is_csv = bool(layout.header)
        self._ended = False

    @property
    def begun(self) -> bool:
        """Whether there was any row."""
        return self._clock.origin is not None

    def __iter__(self) -> Iterator[Rows]:
        for block in self._blocks:
            rows = self._by_arrow(block.data)
            if rows is not None:
                yield rows
            else:
                open_ended = self._is_csv and b'"' in block.data  # a quoted cell may continue in the next block
                yield from self._one_by_one(chain([block], self._blocks) if open_ended else [block])
            if self._ended:
                return

    def _by_arrow(self, data: bytes) -> Rows | None:
        """The rows of a block; None if anything in them is wrong, or merely unusual."""
        if not self.begun or b"\0" in data or (self._is_csv and b'"' in data):
            return None
        try:
            data.decode()  # all of it: Arrow does not check columns that it does not read
            columns = _csv_columns(self._layout, self._clock, data) if self._is_csv else _json_columns(self._layout, data)
        except UnicodeDecodeError:
            return None
        if columns is None or not len(columns[0]):
            return None
        names, (times, *tokens) = (columns.pop(), columns) if self._layout.service is not None else (None, columns)
        with np.errstate(over="ignore"):  # of numbers that are refused below
            time_s = self._clock.since_origin_s(times)
        behind = time_s >= self._stop_s
        end = int(behind.argmax()) if behind.any() else len(time_s)
        seen = slice(end + 1)  # the first row after the window is read too, to check its time
        if not self._clock.are_valid(times[seen]) or (np.diff(time_s[seen], prepend=self.last_s) < 0).any():
            return None
        if not all(_are_tokens(values[:end]) for values in tokens):
            return None
        service = None if names is None else self._numbers(names[:end])
        if names is not None and service is None:
            return None  # a new one, whose line is to be known
        self._ended = end < len(time_s)
        self.last_s = float(time_s[seen][-1])
        return _rows(self._layout, time_s[:end], [values[:end] for values in tokens], service)

    def _numbers(self, names: NDArray[Any]) -> NDArray[np.int32] | None:
        """(m,) numbers of the names of service classes; None if one of them is new."""
        known = {name: i for i, name in enumerate(self.classes)}
        distinct, which = np.unique(names, return_inverse=True)
        numbers = [known.get(str(name).strip()) for name in distinct]
        return None if None in numbers else np.array(numbers, np.int32)[which]

    def _one_by_one(self, blocks: Iterable[Block]) -> Iterator[Rows]:
        lines = Lines(self._path, blocks)
        names = self._layout.named[1:]
        times: list[float] = []
        tokens: list[list[float]] = [[] for _ in names]
        classes: list[str] = []
        for time, *cells in _csv_cells(self._layout, lines) if self._is_csv else _json_cells(self._layout, lines):
            self.last_s = self._time_s(lines, time)
            self._ended = self.last_s >= self._stop_s
            if self._ended:
                break
            if self._layout.service is not None:
                classes.append(self._class(lines, self._layout.service, cells.pop()))
            times.append(self.last_s)
            for values, name, cell in zip(tokens, names, cells, strict=True):
                values.append(_token_count(lines, name, cell))
            if len(times) == _ROWS:
                yield self._listed(times, tokens, classes)
                times, tokens, classes = [], [[] for _ in names], []
        yield self._listed(times, tokens, classes)

    def _listed(self, times: list[float], tokens: list[list[float]], classes: list[str]) -> Rows:
        service = None if self._layout.service is None else self._numbers(np.array(classes, np.str_))
        return _rows(self._layout, np.array(times), [np.array(values) for values in tokens], service)

    def _class(self, lines: Lines, column: str, cell: str) -> str:
        """The name of a service class, which is noted if it is new."""
        name = cell.strip()
        if not name:
            raise lines.refusal(column, cell, "must be the name of a service class")
        if name not in self.classes and len(self.classes) == _MOST_CLASSES:
            raise lines.refusal(column, cell, f"is one name more than {_MOST_CLASSES}: no scenario has so many service classes")
        self.classes.setdefault(name, lines.line)
        return name

    def _time_s(self, lines: Lines, cell: str) -> float:
        time = self._clock.parse(cell)
        if time is None:
            raise lines.refusal(self._layout.time, cell, self._clock.rule)
        time_s = self._clock.since_origin_s(time)
        if time_s < self.last_s:
            raise lines.refusal(self._layout.time, cell, "is earlier than the row before: sort the rows by time")
        return time_s


def _first_line_apart(blocks: Iterable[Block]) -> Iterator[Block]:
    blocks = iter(blocks)
    for block in blocks:
        end = block.data.find(b"\n") + 1
        if 0 < end < len(block.data):
            yield Block(block.line, block.data[:end])
            yield Block(block.line + 1, block.data[end:])
        elif block.data:
            yield block
        break
    yield from blocks


def _rows(layout: Layout, time_s: NDArray[np.float64], tokens: list[NDArray[Any]], service: NDArray[np.int32] | None) -> Rows:
    columns = iter([values.astype(np.int32) for values in tokens])
    return Rows(
        time_s=time_s,
        prompt=None if layout.prompt is None else next(columns),
        output=None if layout.output is None else next(columns),
        service=service,
    )


def _are_tokens(values: NDArray[np.float64]) -> bool:
    return bool(((values >= 0) & (values <= _MAX_TOKENS) & (np.floor(values) == values)).all())  # NaN is in no range


def _token_count(lines: Lines, name: str, cell: str) -> float:
    value = number(cell)
    if value is None or not 0 <= value <= _MAX_TOKENS or not value.is_integer():
        raise lines.refusal(name, cell, _TOKENS)
    return value


def _csv_columns(layout: Layout, clock: Clock, data: bytes) -> list[NDArray[Any]] | None:
    """Times as parsed by ``clock``, tokens as floats, then names of classes; None if Arrow parses the data as anything else."""
    index = [str(layout.header.index(name)) for name in layout.named]
    last = [] if layout.service is None else [str(layout.header.index(layout.service))]
    types = dict.fromkeys(index, pa.float64()) | {name: pa.string() for name in last}
    for time_type in (pa.timestamp("ns"), pa.timestamp("ns", "UTC")) if clock.iso else (pa.float64(),):
        try:
            table = arrow_csv.read_csv(
                io.BytesIO(data),
                arrow_csv.ReadOptions(
                    use_threads=False, block_size=len(data) + 1, column_names=[str(i) for i in range(len(layout.header))]
                ),
                arrow_csv.ParseOptions(quote_char=False),
                arrow_csv.ConvertOptions(
                    include_columns=[*index, *last], column_types=types | {index[0]: time_type}, null_values=[]
                ),
            )
        except pa.ArrowException:
            continue  # times without an offset, then with one
        times = table[index[0]].to_numpy()
        return [times.view(np.int64) // 1000 if clock.iso else times, *(table[i].to_numpy() for i in (*index[1:], *last))]
    return None


def _json_columns(layout: Layout, data: bytes) -> list[NDArray[Any]] | None:
    schema = pa.schema([(name, pa.float64()) for name in layout.named])
    try:
        table = arrow_json.read_json(
            io.BytesIO(data),
            arrow_json.ReadOptions(use_threads=False, block_size=len(data) + 1),
            arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowException:
        return None
    if any(table[name].null_count for name in layout.named) or not _is_object_a_line(data, table.num_rows):
        return None
    return [table[name].to_numpy() for name in layout.named]


def _is_object_a_line(data: bytes, objects: int) -> bool:
    lines = data.count(b"\n") + (not data.endswith(b"\n"))
    return objects == lines == data.count(b"\n{") + data.startswith(b"{")


class Lines:
    """The lines of blocks as text, with their positions for messages. Iterating raises InputError for a row longer than 1 MiB."""

    def __init__(self, path: str, blocks: Iterable[Block]) -> None:
        self.path = path
        self.line = 0  # of the line taken last
        self.row_bytes = 0  # since a caller last set it to 0
        self._lines = ((block.line + i, raw) for block in blocks for i, raw in enumerate(block.data.splitlines(keepends=True)))

    def __iter__(self) -> Iterator[str]:
        for line, raw in self._lines:
            self.line = line
            self.row_bytes += len(raw)
            if self.row_bytes > BLOCK_BYTES:
                raise InputError(f"{self.path}: line {self.line}: a row longer than 1 MiB: perhaps a quote is never closed")
            yield decode(self.path, self.line, raw)

    def refusal(self, column: str, cell: str, rule: str) -> InputError:
        """The error for a cell of the line taken last."""
        return InputError(f"{self.path}: line {self.line}, column {column!r}: {short(cell)!r} {rule}")


def _csv_cells(layout: Layout, lines: Lines) -> Iterator[list[str]]:
    """The cells to read of each row, in the order of ``layout.named``, then the service class."""
    index = [layout.header.index(name) for name in (*layout.named, *([] if layout.service is None else [layout.service]))]
    rows = csv.reader(lines, strict=True)
    try:
        for row in rows:
            lines.row_bytes = 0
            if row and len(row) != len(layout.header):
                cells = f"{len(row)} cells for the header's {len(layout.header)} columns"
                raise InputError(f"{lines.path}: line {lines.line}: {cells}: {short(','.join(row))!r}")
            if row:
                yield [row[i] for i in index]
    except csv.Error as error:
        raise InputError(f"{lines.path}: line {lines.line}: not CSV ({error}): correct the quotes in the row") from None


def _json_cells(layout: Layout, lines: Lines) -> Iterator[list[str]]:
    """The values to read of each object, in the order of ``layout.named``, as JSON."""
    for source in lines:
        lines.row_bytes = 0
        if not source.strip():
            continue
        try:
            record = json.loads(source)
        except (ValueError, RecursionError) as error:  # ValueError: JSONDecodeError, or an integer too long to convert
            where = f"{lines.path}: line {lines.line}, column {getattr(error, 'colno', 1)}"
            raise InputError(
                f"{where}: not JSON, an object a line ({getattr(error, 'msg', error)}): {short(source.strip())!r}"
            ) from None
        if not isinstance(record, dict):
            keys = ", ".join(layout.named)
            raise InputError(f"{lines.path}: line {lines.line}: must be a JSON object with {keys}: {short(source.strip())!r}")
        for name in layout.named:
            if name not in record:
                raise InputError(f"{lines.path}: line {lines.line}: {missing(name, list(record))}")
        yield [json.dumps(record[name]) for name in layout.named]
