"""Folders written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rllib_envs.errors import InputError


@contextmanager
def written_aside(target: Path) -> Generator[Path]:
    """A new folder to write to, which becomes ``target`` when all is well: flushed to the disk, then renamed.

    Whatever was there before is replaced; if an error comes, also of the writer's, it stays as it was and nothing new is left.

    Raises:
        InputError: the place cannot be written to, or there is something else than a folder.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file: a folder is to be written there")
    aside = target.parent / f".aside-{target.name}-{os.getpid()}"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from None
    try:
        yield aside
        for path in [*aside.rglob("*"), aside]:
            _flush(path)
        old = target.parent / f".old-{target.name}-{os.getpid()}"
        if target.exists():
            target.rename(old)
        try:
            aside.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
        _flush(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _flush(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
