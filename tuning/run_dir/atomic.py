"""Atomic file writes: files are staged, flushed to the disk, then renamed into place."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from models.export.files import flush, staged_file
from rllib_envs.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a staged file beside ``path``, then rename it to ``path``; folders are made as needed.

    Errors of ``write`` go on to the caller, and ``path`` stays as it was.

    Raises:
        InputError: the operating system refuses (rights, no space, a folder in the way).
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staged_file(path) as staged:
            write(staged)
            flush(staged)
            os.replace(staged, path)
            flush(path.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_secret(path: Path, secret: bytes) -> None:
    """Create a file that no other user can read, unless it exists; of several processes one succeeds.

    Raises:
        OSError: the operating system refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with staged_file(path, 0o600) as staged:
        staged.write_bytes(secret)
        flush(staged)
        with suppress(FileExistsError):
            os.link(staged, path)  # unlike a rename, it does not replace one that is there by now
        flush(path.parent)


def write_bytes(path: Path, data: bytes) -> None:
    """``write_atomically`` of bytes."""
    write_atomically(path, lambda staged: _write(staged, data))


def write_text(path: Path, text: str) -> None:
    """``write_atomically`` of a text in UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    """``write_atomically`` of JSON; NaN and infinities, which JSON lacks, become null."""
    write_text(path, json.dumps(_finite(data), indent=1, allow_nan=False) + "\n")


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]  # pyright: ignore[reportUnknownVariableType]
    return None if isinstance(data, float) and not math.isfinite(data) else data
