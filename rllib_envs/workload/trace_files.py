"""A trace file as blocks of whole lines: opened, unpacked and checked with at most one block in memory."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Generator, Iterator
from typing import BinaryIO, NamedTuple, cast

from rllib_envs.errors import InputError

BLOCK_BYTES = 1 << 20
"""Bytes per read, and the longest line of a trace."""

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"  # byte-order mark that some editors write
_HEAD_BYTES = 4096

_KINDS = {
    stat.S_IFDIR: "is a directory: give the path of one file in it",
    stat.S_IFIFO: "is a pipe, which can be read only once: write what comes out of it to a file",
    stat.S_IFCHR: "is a device: give the path of a file",
    stat.S_IFBLK: "is a device: give the path of a file",
    stat.S_IFSOCK: "is a socket: give the path of a file",
}

_UNPACK = "unpack it first"
_EXPORT = "export it as CSV first"
_SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (_GZIP, "gzip data within gzip data", _UNPACK),
    (b"\xfd7zXZ\0", "xz data", f"{_UNPACK} (xz -d)"),
    (b"\x28\xb5\x2f\xfd", "zstd data", f"{_UNPACK} (zstd -d)"),
    (b"BZh", "bzip2 data", f"{_UNPACK} (bzip2 -d)"),
    (b"\x04\x22\x4d\x18", "lz4 data", f"{_UNPACK} (lz4 -d)"),
    (b"\x1f\x9d", "compress data", f"{_UNPACK} (uncompress)"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"PK\x03\x04", "a zip archive, as .xlsx files are too", f"unzip it, or {_EXPORT}"),
    (b"PAR1", "a Parquet file", _EXPORT),
    (b"ARROW1", "an Arrow file", _EXPORT),
    (b"\x89HDF", "an HDF5 file", _EXPORT),
    (b"SQLite format 3\0", "an SQLite database", _EXPORT),
    (b"\xd0\xcf\x11\xe0", "an old Office file, as .xls files are", _EXPORT),
    (b"\x93NUMPY", "a NumPy array", _EXPORT),
    (b"\x80\x02", "a Python pickle, which is never loaded", _EXPORT),
    (b"\x80\x03", "a Python pickle, which is never loaded", _EXPORT),
    (b"\x80\x04", "a Python pickle, which is never loaded", _EXPORT),
    (b"\x80\x05", "a Python pickle, which is never loaded", _EXPORT),
    (b"%PDF", "a PDF file", _EXPORT),
    (b"\xff\xfe", "UTF-16 text", "save it as UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "save it as UTF-8"),
    (
        b"version https://git-lfs.github.com/spec/",
        "a git-lfs pointer, not the data",
        "fetch them in its repository (git lfs pull)",
    ),
    (b"/annex/objects/", "a git-annex pointer, not the data", "fetch them in its repository (git annex get)"),
)
_TAR_AT, _TAR = 257, b"ustar"


class Block(NamedTuple):
    """Whole lines of a file."""

    line: int  # number of the first, from 1
    data: bytes


def read_blocks(path: str) -> Generator[Block]:
    """The lines of a file, plain or gzip, about a MiB at a time; nothing after the last block taken is unpacked.

    Raises:
        InputError: no such file, not a regular file, not a text, damaged gzip data, a line longer than 1 MiB or as many
            blank ones.
    """
    try:
        with open(_open(path), "rb") as plain:
            packed = plain.read(len(_GZIP)) == _GZIP
            plain.seek(0)
            # GzipFile reads like any binary file, but the type checker does not know
            yield from _whole_lines(path, cast(BinaryIO, gzip.GzipFile(fileobj=plain)) if packed else plain)
    except EOFError:
        raise InputError(f"{path}: the gzip data ends too early: download or copy the file again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip data ({error}): download or copy the file again") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


def _open(path: str) -> int:
    """A file descriptor. It never waits for or reads anything but a regular file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except ValueError as error:  # a NUL byte in the path
        raise InputError(f"{path!r}: no path of a file ({error})") from None
    kind = _KINDS.get(stat.S_IFMT(os.fstat(descriptor).st_mode))
    if kind is not None:
        os.close(descriptor)
        raise InputError(f"{path}: {kind}")
    return descriptor


def _whole_lines(path: str, source: BinaryIO) -> Iterator[Block]:
    line, rest = 1, b""
    first = source.read(BLOCK_BYTES).removeprefix(_BOM)
    _refuse_what_is_no_text(path, first)
    for fresh in _chunks(first, source):
        data = rest + fresh
        end = _end_of_lines(data)
        if len(rest) + _first_line(fresh) > BLOCK_BYTES:  # the one line that spans several chunks
            raise InputError(f"{path}: line {line}: longer than 1 MiB: not a line of such a file")
        if len(data) >= BLOCK_BYTES and data.isspace():
            raise InputError(f"{path}: line {line}: 1 MiB of blank lines: nothing is read")
        if end:
            yield Block(line, data[:end])
        line += _count_lines(data[:end])
        rest = data[end:]
    if rest:
        yield Block(line, rest)


def _chunks(first: bytes, source: BinaryIO) -> Iterator[bytes]:
    chunk = first
    while chunk:
        yield chunk
        chunk = source.read(BLOCK_BYTES)


def _end_of_lines(data: bytes) -> int:
    """Length of the whole lines in it. Lines may end in a lone carriage return; the last byte may be half of a line end."""
    return data.rfind(b"\n") + 1 or data.rfind(b"\r", 0, -1) + 1


def _first_line(data: bytes) -> int:
    """Length of the first line in it, or of all of it."""
    return min((end for end in (data.find(b"\n"), data.find(b"\r")) if end >= 0), default=len(data))


def _count_lines(data: bytes) -> int:
    """Number of line ends in it: line feeds, carriage returns, or both together."""
    returns = data.count(b"\r")
    return data.count(b"\n") + (returns - data.count(b"\r\n") if returns else 0)


def _refuse_what_is_no_text(path: str, head: bytes) -> None:
    for signature, name, advice in _SIGNATURES:
        if head.startswith(signature):
            raise InputError(f"{path}: is {name}: {advice}")
    if head.startswith(_TAR, _TAR_AT):
        raise InputError(f"{path}: is a tar archive: {_UNPACK} (tar -x)")
    start = head[:_HEAD_BYTES].lstrip()
    if b"\0" in head[:_HEAD_BYTES]:
        raise InputError(f"{path}: is binary data, no text: CSV files and JSON lines are read, plain or gzip")
    if start.startswith(b"<"):
        kind = "an XML file" if start.startswith(b"<?xml") else "an HTML page, perhaps an error message"
        raise InputError(f"{path}: is {kind}, not the data: download the file itself")
    if start.startswith(b"["):
        raise InputError(f"{path}: is a JSON array: write one object a line (jq -c '.[]')")
