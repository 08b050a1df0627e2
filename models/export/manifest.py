"""Manifests: the names, sizes and digests of a folder's files, and checks against them.

A library that loads a folder may prefer an unexpected file. So the files of a folder must equal those of its manifest. Loading
code from it, such as pickles, takes a private copy.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from models.export.names import inner_name
from rllib_envs.errors import InputError

_SHA256, _BYTES = "sha256", "bytes"  # keys of a description
_MOST_FILES = 1000
_MOST_BYTES = 2**34  # of a file
_CHUNK = 2**20
_DESCRIPTION_BYTES = 2**20
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # not blocked by a pipe that nobody writes to


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The files of a folder, by name."""

    sha256: Mapping[str, str]
    bytes: Mapping[str, int]  # those whose size is known

    def below(self, name: str) -> Manifest:
        """The manifest of a subfolder."""
        start = f"{name}/"
        return Manifest(
            sha256={key.removeprefix(start): value for key, value in self.sha256.items() if key.startswith(start)},
            bytes={key.removeprefix(start): value for key, value in self.bytes.items() if key.startswith(start)},
        )

    def to_dict(self) -> dict[str, Any]:
        """The form that ``manifest_in`` reads."""
        return {_SHA256: dict(self.sha256), _BYTES: dict(self.bytes)}


def manifest_of(folder: Path) -> Manifest:
    """Compute the manifest of a folder before its description is written."""
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return Manifest(
        sha256={name: digest(path) for name, path in paths.items()}, bytes={name: p.stat().st_size for name, p in paths.items()}
    )


def manifest_in(contents: Mapping[str, Any], where: Path) -> Manifest:
    """Read the manifest from the description of a folder.

    Args:
        contents: of the description.
        where: its file, which is in the folder and not in the manifest.

    Raises:
        InputError: there is none, or not as it is written: too many files, names that leave the folder, the description itself.
    """
    found, sizes = contents.get(_SHA256), contents.get(_BYTES, {})
    if not isinstance(found, dict) or not isinstance(sizes, dict):
        raise InputError(f"{where}: damaged: it has no digests of files")
    if len(found) > _MOST_FILES:
        raise InputError(f"{where}: damaged: {_SHA256} has {len(found)} files: at most {_MOST_FILES} are allowed")
    for name, value in found.items():
        inner_name(name, where)
        if name == where.name or not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
            raise InputError(f"{where}: damaged: {_SHA256} has no digest of a file under {name!r:.200}")
    for name, value in sizes.items():
        if name not in found or type(value) is not int or not 0 <= value <= _MOST_BYTES:
            raise InputError(f"{where}: damaged: {_BYTES} has no size of a file under {name!r:.200}")
    return Manifest(sha256=cast(dict[str, str], found), bytes=cast(dict[str, int], sizes))


def check_folder(folder: Path, manifest: Manifest, where: Path, what: str) -> None:
    """Check that a folder has exactly the files of its manifest, unchanged, beside its description.

    Args:
        folder: what to look at.
        manifest: what it must hold.
        where: file of the description.
        what: what the folder is, for messages.

    Raises:
        InputError: a file is missing, changed, too many, a link or no file at all; the message names it.
    """
    for name, file, size in _files(folder, manifest, where, what):
        if _read(file, size, None) != manifest.sha256[name]:
            raise _changed(folder / name, where)


@contextmanager
def private_copy(folder: Path, manifest: Manifest, where: Path, what: str) -> Generator[Path]:
    """Copy the files of a manifest to a private folder, for as long as the context lasts.

    The copied bytes are the digested bytes, so a file swapped at any time is refused or has no effect.

    Args:
        folder: what to copy; no description is expected in it.
        manifest: what it must hold.
        where: file of the description.
        what: what the folder is, for messages.

    Raises:
        InputError: as ``check_folder``, or there is no room for a copy.
    """
    try:
        private = tempfile.TemporaryDirectory(prefix="edgeroute-")  # which no other user may enter
    except OSError as error:
        raise InputError(f"{tempfile.gettempdir()}: no room for a private copy of {folder}: {error.strerror}") from None
    with private:
        target = Path(private.name) / folder.name
        target.mkdir()
        for name, file, size in _files(folder, manifest, where, what):
            path = target / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as copy:
                    found = _read(file, size, copy)
            except OSError as error:
                raise InputError(f"{path}: the private copy of {folder} cannot be written: {error.strerror}") from None
            if found != manifest.sha256[name]:
                raise _changed(folder / name, where)
        yield target


def read_description(where: Path, what: str) -> dict[str, Any]:
    """Read the JSON description of a folder.

    Raises:
        InputError: it cannot be read, or is no mapping in JSON with finite numbers, or one that is too large or too deep.
    """
    try:
        text = read_file(where, _DESCRIPTION_BYTES, what).decode()
        loaded: Any = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except RecursionError:
        raise InputError(f"{where}: damaged: JSON of too many levels") from None
    except ValueError as error:
        raise InputError(f"{where}: damaged: {error}") from None
    if not isinstance(loaded, dict):
        raise InputError(f"{where}: damaged: no mapping")
    return cast(dict[str, Any], loaded)


def read_file(path: Path, most: int, what: str) -> bytes:
    """Read a regular file of a limited size: no link, no pipe, nothing that could block.

    Args:
        path: file.
        most: its size in bytes at most.
        what: what it is part of, for messages.

    Raises:
        InputError: it cannot be read, is larger, or is no regular file.
    """
    try:
        descriptor = os.open(path, _OPEN)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{path}: no file: the {what} is damaged")
            data = file.read(most + 1) if status.st_size <= most else None
    except OSError as error:
        raise InputError(f"{path}: {_no_file(path, error)}: the {what} is damaged") from None
    if data is None or len(data) > most:
        raise InputError(f"{path}: has more than {most:,} bytes: the {what} is damaged")
    return data


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path, manifest: Manifest, where: Path, what: str) -> Generator[tuple[str, BinaryIO, int]]:
    """Name, open file and size of all files in a folder; an error if they differ from the manifest.

    Folders are held by descriptors: whoever renames one on the way leads nowhere else.
    """
    folders = {parent.as_posix() for name in manifest.sha256 for parent in PurePosixPath(name).parents}
    left = set(manifest.sha256)

    def enter(descriptor: int, within: str) -> Generator[tuple[str, BinaryIO, int]]:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                name = f"{within}{entry.name}"
                if name in left:
                    left.remove(name)
                    with _opened(entry.name, descriptor, folder / name, manifest.bytes.get(name), where, what) as found:
                        yield name, *found
                elif name in folders and entry.is_dir(follow_symlinks=False):
                    with _held(entry.name, descriptor) as inner:
                        yield from enter(inner, f"{name}/")
                elif folder / name != where:
                    kind = "a link" if entry.is_symlink() else "a folder" if entry.is_dir() else "a file"
                    raise InputError(f"{folder / name}: {kind} that {where.name} does not name: the {what} was tampered with")

    try:
        with _held(folder) as descriptor:
            yield from enter(descriptor, "")
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}: the {what} is damaged") from None
    if left:
        raise InputError(f"{folder / min(left)}: missing: the {what} is damaged")


@contextmanager
def _held(path: str | Path, within: int | None = None) -> Generator[int]:
    """The descriptor of a folder, which is no link if it is within another."""
    descriptor = os.open(path, (_OPEN if within is not None else _OPEN & ~os.O_NOFOLLOW) | os.O_DIRECTORY, dir_fd=within)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _opened(base: str, within: int, path: Path, size: int | None, where: Path, what: str) -> Generator[tuple[BinaryIO, int]]:
    """A file of a folder, open to be read, if it is one and has the size it should have."""
    try:
        descriptor = os.open(base, _OPEN, dir_fd=within)
    except OSError as error:
        raise InputError(f"{path}: {_no_file(path, error)}: the {what} is damaged") from None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: no file: the {what} is damaged")
        if status.st_size > _MOST_BYTES:
            raise InputError(f"{path}: damaged: has more than {_MOST_BYTES:,} bytes")
        if size is not None and status.st_size != size:  # a manifest of an earlier version tells none
            raise InputError(f"{path}: damaged: has {status.st_size:,} bytes, not {size:,} as {where.name} says")
        yield file, status.st_size


def _read(file: BinaryIO, size: int, copy: BinaryIO | None) -> str:
    """SHA-256 of as much of a file as there was when it was opened, which is copied: it may grow meanwhile."""
    sha256 = hashlib.sha256()
    while size > 0 and (data := file.read(min(_CHUNK, size))):
        size -= len(data)
        sha256.update(data)
        if copy is not None:
            copy.write(data)
    return sha256.hexdigest()


def _changed(path: Path, where: Path) -> InputError:
    return InputError(f"{path}: damaged: its SHA-256 is not the one in {where.name}")


def _no_file(path: Path, error: OSError) -> str:
    """What an error from opening a file says of it."""
    if path.is_symlink():
        return "is a link"
    return "missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not finite")
    return value
