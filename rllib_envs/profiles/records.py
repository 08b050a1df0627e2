"""Records of requests as any client or proxy can keep them: arrival, tokens, first and last token.

A file has a record in each line, as JSON or as CSV with a header, with the names ``arrival_s, prompt_tokens, output_tokens,
first_token_s, last_token_s``. Times are in seconds on one clock, and further columns do no harm. A record whose times are empty
or null is of a request that failed: it is left out.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rllib_envs.errors import InputError
from rllib_envs.json_files import parse_json
from rllib_envs.profiles.measurements import MeasuredRun
from rllib_envs.text_files import read_text

MOST_BYTES = 2**28
"""Largest file that is read: some millions of records."""

_MOST = 1e12


class RequestRecord(NamedTuple):
    """A request that was served."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    first_token_s: float
    last_token_s: float


def read_requests(path: Path, *, max_num_seqs: int, max_num_batched_tokens: int) -> MeasuredRun:
    """Read a file of records.

    Raises:
        InputError: it cannot be read, has no record of a request that was served, or a record is impossible.
    """
    lines = read_text(path, MOST_BYTES).splitlines()
    rows = _json_rows(path, lines) if lines and lines[0].lstrip().startswith("{") else _csv_rows(path, lines)
    records = [record for where, row in rows if (record := _record(where, row)) is not None]
    if not records:
        raise InputError(f"{path}: no record of a request that was served: at least one is needed")
    return as_run(records, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens)


def as_run(records: Sequence[RequestRecord], *, max_num_seqs: int, max_num_batched_tokens: int) -> MeasuredRun:
    """The records (at least one) in order of arrival, in s from the first arrival, with the limits of their server."""
    ordered = sorted(records)
    start_s = ordered[0].arrival_s
    arrival_s, prompt, output, first_s, last_s = (np.array(column) for column in zip(*ordered, strict=True))
    return MeasuredRun(
        prompt_tokens=prompt.astype(np.int64),
        output_tokens=output.astype(np.int64),
        arrival_s=arrival_s - start_s,
        first_token_s=first_s - start_s,
        last_token_s=last_s - start_s,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )


def _json_rows(path: Path, lines: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            row = parse_json(line, str(path), number)
            if not isinstance(row, dict):
                raise InputError(f"{path}:{number}: {line[:40]!r}: must be a JSON object with {', '.join(RequestRecord._fields)}")
            yield f"{path}:{number}", row


def _csv_rows(path: Path, lines: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(lines, strict=True)
    try:
        missing = [name for name in RequestRecord._fields if name not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{path}:1: columns {', '.join(reader.fieldnames or ())[:200]}: {missing[0]!r} is missing")
        for row in reader:
            yield f"{path}:{reader.line_num}", row
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not CSV: {error}") from None


def _record(where: str, row: dict[str, Any]) -> RequestRecord | None:
    failed = any(name in row and row[name] in (None, "") for name in ("first_token_s", "last_token_s"))
    if failed and all(name in row for name in RequestRecord._fields):
        return None
    values = [_number(where, row, name) for name in RequestRecord._fields]
    record = RequestRecord(values[0], int(values[1]), int(values[2]), values[3], values[4])
    for name in ("prompt_tokens", "output_tokens"):
        if not 1 <= getattr(record, name) < 2**30:
            raise InputError(f"{where}: {name} = {getattr(record, name)}: must be from 1 to {2**30 - 1:,}")
    if not record.arrival_s < record.first_token_s <= record.last_token_s:
        raise InputError(
            f"{where}: arrival_s = {record.arrival_s}, first_token_s = {record.first_token_s}, "
            f"last_token_s = {record.last_token_s}: must be in this order, the first token after the arrival"
        )
    return record


def _number(where: str, row: dict[str, Any], name: str) -> float:
    if name not in row:
        raise InputError(f"{where}: {name} is missing: a record has {', '.join(RequestRecord._fields)}")
    try:
        value = math.nan if isinstance(row[name], bool) else float(row[name])
    except (TypeError, ValueError):
        value = math.nan
    if not 0 <= value <= _MOST:
        raise InputError(f"{where}: {name} = {row[name]!r}: must be a number from 0 to {_MOST:.0e}")
    return value
