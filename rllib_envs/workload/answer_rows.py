"""The rows of a log of answers, one by one and unchecked, from CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import difflib
import os
import stat
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import pyarrow as pa
from pyarrow import parquet

from rllib_envs.errors import InputError
from rllib_envs.json_files import parse_json
from rllib_envs.workload.trace_files import BLOCK_BYTES, read_blocks
from rllib_envs.workload.trace_formats import short
from rllib_envs.workload.trace_rows import Lines

NEEDED = (("id",), ("prompt",), ("model",), ("score", "correct"), ("out_tokens", "output_tokens"))
"""Columns that there must be, each by one of its names."""

OPTIONAL = ("task", "prompt_tokens")

_PARQUET = b"PAR1"
_GZIP = b"\x1f\x8b"
_HEAD_BYTES = 4096
_BATCH_ROWS = 1024
_MOST_GROUP_BYTES = 2**31
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


class AnswerRow(NamedTuple):
    """A row."""

    number: int  # in a CSV file or JSON lines the line that it begins in, in Parquet the row, from 1
    cells: dict[str, Any]  # the first name of a column in NEEDED -> text of CSV, or a value
    names: Mapping[str, str]  # that first name -> the one in the file
    fault: str = ""  # what is wrong with the row as a whole


def head_of(path: str) -> bytes:
    """The beginning of a file, unpacked if it is gzip; nothing of what is no regular file or cannot be read."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait
            return b""
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
        return zlib.decompressobj(wbits=31).decompress(head, _HEAD_BYTES) if head.startswith(_GZIP) else head
    except (OSError, ValueError, zlib.error):
        return b""


def read_rows(path: str) -> Iterator[AnswerRow]:
    """The rows of a log, with at most a batch in memory.

    Raises:
        InputError: the file is none of the three, or damaged; a column is missing, or stands there twice.
    """
    head = head_of(path)
    if head.startswith(_PARQUET):
        return _parquet_rows(path)
    return _json_rows(path) if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") else _csv_rows(path)


def unit_of(path: str) -> str:
    """What a row's number counts."""
    return "row" if head_of(path).startswith(_PARQUET) else "line"


def _columns(where: str, present: Sequence[str]) -> dict[str, str]:
    """The names in the file of the columns to read."""
    found: dict[str, str] = {}
    for names in (*NEEDED, *((name,) for name in OPTIONAL)):
        there = [name for name in present if name in names]
        if len(there) > 1:
            raise InputError(f"{where}: columns {' and '.join(map(repr, there))} say the same: give one of them")
        if there:
            found[names[0]] = there[0]
        elif names in NEEDED:
            folded = {other.lower(): other for other in present}
            near = difflib.get_close_matches(names[0], folded, n=1)
            hint = f"; nearest: {folded[near[0]]!r}" if near else ""
            wanted = " or ".join(map(repr, names))
            raise InputError(f"{where}: no column {wanted}; the file has {short(', '.join(map(repr, present)), 400)}{hint}")
    return found


def _csv_rows(path: str) -> Iterator[AnswerRow]:
    lines = Lines(path, read_blocks(path))
    limit = csv.field_size_limit(BLOCK_BYTES)  # else a prompt may have but 131,072 characters
    rows = csv.reader(lines, strict=True)
    header: list[str] = []
    names: dict[str, str] = {}
    index: dict[str, int] = {}
    begin = 1
    try:
        for row in rows:
            lines.row_bytes = 0
            if row and not header:
                header = [name.strip() for name in row]
                _refuse_other_separators(f"{path}: line {begin}", header)
                names = _columns(f"{path}: line {begin}", header)
                index = {name: header.index(own) for name, own in names.items()}
            elif row and len(row) != len(header):
                cells = f"{len(row)} cells for the header's {len(header)} columns: {short(','.join(row))!r}"
                yield AnswerRow(begin, {}, names, f"{cells}: quote cells that hold commas")
            elif row:
                yield AnswerRow(begin, {name: row[i] for name, i in index.items()}, names)
            begin = lines.line + 1
    except csv.Error as error:
        raise InputError(f"{path}: line {begin}: not CSV ({error}): correct the quotes in the row") from None
    finally:
        csv.field_size_limit(limit)
    if not header:
        raise InputError(f"{path}: the file is empty: a log has a line with the names of its columns")


def _refuse_other_separators(where: str, header: list[str]) -> None:
    for mark, word in _SEPARATORS.items():
        if len(header) == 1 and mark in header[0]:
            raise InputError(f"{where}: cells separated by {word}, not commas: {short(header[0])!r}: write commas")


def _json_rows(path: str) -> Iterator[AnswerRow]:
    columns: dict[str, str] = {}
    lines = Lines(path, read_blocks(path))
    for text in lines:
        lines.row_bytes = 0
        if not text.strip():
            continue
        try:
            record = parse_json(text.rstrip("\r\n"), "", lines.line)
        except InputError as error:
            what = str(error).removeprefix(f":{lines.line}:").lstrip()
            yield AnswerRow(lines.line, {}, columns, f"column {what}" if what[:1].isdigit() else what)
            continue
        if not isinstance(record, dict):
            yield AnswerRow(lines.line, {}, columns, f"{short(text.strip())!r} must be a JSON object")
            continue
        record = cast(dict[str, Any], record)
        columns = columns or _columns(f"{path}: line {lines.line}", list(record))
        yield AnswerRow(lines.line, {name: record.get(own) for name, own in columns.items()}, columns)


def _parquet_rows(path: str) -> Iterator[AnswerRow]:
    try:
        with parquet.ParquetFile(path, memory_map=True) as file:
            schema = file.schema_arrow
            columns = _columns(path, schema.names)
            for name, own in columns.items():
                _check_type(path, own, schema.field(own).type, number=name in ("score", "out_tokens", "prompt_tokens"))
            _check_size(path, file.metadata, set(columns.values()))
            number = 0
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(columns.values()), use_threads=False):
                values = [batch.column(own).to_pylist() for own in columns.values()]
                for cells in zip(*values, strict=True):
                    number += 1
                    yield AnswerRow(number, dict(zip(columns, cells, strict=True)), columns)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: damaged Parquet: {short(' '.join(str(error).split()), 200)}") from None


def _check_type(path: str, column: str, kind: Any, *, number: bool) -> None:
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if pa.types.is_dictionary(kind):
        return _check_type(path, column, kind.value_type, number=number)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not (is_number if number else is_text or pa.types.is_integer(kind)) and not pa.types.is_null(kind):
        raise InputError(f"{path}: column {column!r} has values of type {kind}: must be {'numbers' if number else 'text'}")
    return None


def _check_size(path: str, metadata: Any, columns: set[str]) -> None:
    """Refuse what cannot be read a part at a time: Arrow holds the columns of a row group."""
    for i in range(metadata.num_row_groups):
        group = metadata.row_group(i)
        parts = [group.column(j) for j in range(group.num_columns)]
        size = sum(part.total_uncompressed_size for part in parts if part.path_in_schema in columns)
        if size > _MOST_GROUP_BYTES:
            raise InputError(
                f"{path}: row group {i} has {size:,} bytes: at most {_MOST_GROUP_BYTES:,} are read: write smaller ones"
            )
