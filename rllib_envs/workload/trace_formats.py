"""The formats of public traces, recognised from the beginning of a file."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from rllib_envs.errors import InputError
from rllib_envs.scenario import TraceFile
from rllib_envs.workload.trace_clocks import ClockKind
from rllib_envs.workload.trace_files import Block

_COLUMNS = {
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
    "mooncake": ("timestamp", "input_length", "output_length"),
}
_CLOCKS: dict[str, ClockKind] = {"azure": "iso", "burstgpt": "s", "mooncake": "ms", "csv": "iso or s"}
_MAX_COLUMNS = 1000
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The positions of the figures in a row."""

    format: str  # azure, burstgpt, mooncake or csv
    clock: ClockKind
    time: str  # columns, or keys of a JSON object
    prompt: str | None
    output: str | None
    service: str | None  # the service class, a name
    header: tuple[str, ...]  # all columns of a CSV file; () for JSON lines

    @property
    def named(self) -> tuple[str, ...]:
        """The columns of numbers to read: time, prompt, output, those that exist."""
        return tuple(name for name in (self.time, self.prompt, self.output) if name is not None)


def recognise(spec: TraceFile, first: Block) -> tuple[Layout, Block]:
    """The layout of a trace that begins with this block, and the block without the header.

    Raises:
        InputError: an empty file, another format than ``spec`` says, a missing or repeated column, a file of an unknown
            format.
    """
    if first.data.lstrip().startswith(b"{"):
        return _json_layout(spec, first), first
    header, rows = _split_header(spec.path, first)
    where = f"{spec.path}: line {rows.line - 1}"
    trace_format = _csv_format(spec, where, header)
    own = (spec.time_column, spec.prompt_column, spec.output_column)
    time, prompt, output = _COLUMNS.get(trace_format, own)
    for name in (time, prompt, output, spec.class_column):
        if name is not None and header.count(name) != 1:
            raise InputError(f"{where}: {missing(name, header)}{_instead(trace_format, header)}")
    clock = _CLOCKS[trace_format]
    layout = Layout(
        format=trace_format,
        clock=clock,
        time=time,
        prompt=prompt,
        output=output,
        service=spec.class_column,
        header=tuple(header),
    )
    return layout, rows


def missing(name: str, present: Sequence[str]) -> str:
    """The message for a column that is not there exactly once."""
    if name in present:
        return f"column {name!r} comes {present.count(name)} times: it must come once"
    folded = {other.lower(): other for other in present}
    near = difflib.get_close_matches(name.lower(), folded, n=1)
    hint = f"; nearest: {folded[near[0]]!r}" if near else ""
    return f"no column {name!r}; the file has {_listed(present)}{hint}"


def short(text: str, limit: int = 80) -> str:
    """The text, cut to ``limit`` characters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _json_layout(spec: TraceFile, first: Block) -> Layout:
    if spec.format not in ("auto", "mooncake"):
        raise InputError(f"{spec.path}: line {first.line}: JSON lines, not CSV: {_advice('mooncake')}")
    if spec.names_columns:
        raise InputError(f"{spec.path}: line {first.line}: JSON lines, not CSV: only the columns of a CSV file can be named")
    time, prompt, output = _COLUMNS["mooncake"]
    return Layout(format="mooncake", clock=_CLOCKS["mooncake"], time=time, prompt=prompt, output=output, service=None, header=())


def _split_header(path: str, first: Block) -> tuple[list[str], Block]:
    """The columns, and the rest of the block after their line."""
    lines = first.data.splitlines(keepends=True)
    skipped = next((i for i, line in enumerate(lines) if line.strip()), None)
    if skipped is None:
        raise InputError(f"{path}: the file is empty: a trace has at least one request")
    where = f"{path}: line {first.line + skipped}"
    text = decode(path, first.line + skipped, lines[skipped])
    try:
        (header,) = csv.reader([text], strict=True)
    except csv.Error as error:
        raise InputError(f"{where}: not CSV ({error}): correct the quotes in the line") from None
    if len(header) > _MAX_COLUMNS:
        raise InputError(f"{where}: {len(header)} columns: a trace has at most {_MAX_COLUMNS}")
    behind = b"".join(lines[skipped + 1 :])
    return [name.strip() for name in header], Block(first.line + skipped + 1, behind)


def decode(path: str, line: int, raw: bytes) -> str:
    """A line as text.

    Raises:
        InputError: it holds a NUL byte, or bytes that are not UTF-8.
    """
    at = raw.find(b"\0")
    if at >= 0:
        raise InputError(f"{path}: line {line}, column {at + 1}: a NUL byte: the file is damaged, download or copy it again")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        where = f"{path}: line {line}, column {error.start + 1}"
        raise InputError(f"{where}: byte 0x{raw[error.start]:02x} is not UTF-8: save the file as UTF-8") from None


def _csv_format(spec: TraceFile, where: str, header: list[str]) -> str:
    if spec.format == "mooncake":
        raise InputError(f"{where}: CSV, not JSON lines{_instead('mooncake', header)}")
    if spec.format != "auto":
        return spec.format
    if spec.names_columns:
        return "csv"
    known = _known(header)
    if known is None:
        raise InputError(f"{where}: {_unknown(header)}")
    return known


def _known(header: Sequence[str]) -> str | None:
    """The CSV format whose columns are all present."""
    return next((name for name in ("azure", "burstgpt") if set(_COLUMNS[name]) <= set(header)), None)


def _instead(trace_format: str, header: Sequence[str]) -> str:
    known = _known(header)
    return "" if known is None or known == trace_format else f": {_advice(known)}"


def _advice(right: str) -> str:
    return f"give --trace-format {right} or leave it out (format: {right} in a scenario)"


def _unknown(header: Sequence[str]) -> str:
    other = next((word for mark, word in _OTHER_SEPARATORS.items() if len(header) == 1 and mark in header[0]), None)
    if other is not None:
        return f"cells separated by {other}, not commas: {short(repr(header[0]))}: write commas"
    if any(name[:1].isdigit() for name in header):
        return f"values, not the names of columns: {_listed(header)}: add a line with the names before it"
    return (
        f"not the columns of a known trace ({', '.join(_COLUMNS)}): {_listed(header)}: name yours with --trace-format csv, "
        "--trace-time-column, --trace-prompt-column, --trace-output-column (format: csv, time_column, ... in a scenario)"
    )


def _listed(names: Sequence[str]) -> str:
    return short(", ".join(map(repr, names[:_MAX_COLUMNS])), 400)
