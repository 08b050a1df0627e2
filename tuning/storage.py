"""Files that are either whole or not there: written aside, flushed to the disk, renamed into place."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rllib_envs.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file beside ``path``, then rename it to ``path``; folders are made as needed.

    Whatever ``write`` raises goes on to the caller, and ``path`` is as it was before.

    Raises:
        InputError: the operating system refuses (rights, no space, a folder in the way).
    """
    aside = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(aside)
            with aside.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_text(path: Path, text: str) -> None:
    """``write_atomically`` of a text in UTF-8."""
    write_atomically(path, lambda aside: _write(aside, text))


def write_json(path: Path, data: Any) -> None:
    """``write_atomically`` of JSON; NaN and infinities, which JSON lacks, become null."""
    write_text(path, json.dumps(_finite(data), indent=1, allow_nan=False) + "\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}  # pyright: ignore[reportUnknownVariableType]
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]  # pyright: ignore[reportUnknownVariableType]
    return None if isinstance(data, float) and not math.isfinite(data) else data
