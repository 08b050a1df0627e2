"""Lock a folder: one run at a time."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from rllib_envs.errors import InputError

LOCK = "run.lock"
"""File of a run directory. The operating system holds the lock, not the file: it goes with the process, however that ends."""


@contextmanager
def run_lock(folder: Path) -> Generator[None]:
    """Keep other processes from running in the folder, also on other hosts that share its file system.

    A missing folder is created, and removed again if it stays empty.

    Raises:
        InputError: another process runs there (the message names it); the folder cannot be written to.
    """
    lock, new = FileLock(folder / LOCK, blocking=False), not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise InputError(f"{folder}: a run is under way there: {_holder(folder / LOCK)}: wait for its end or stop it") from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from None
    try:
        with suppress(OSError):  # a full disk: the lock holds all the same, its holder is just not named
            (folder / LOCK).write_text(json.dumps(_own()) + "\n", encoding="utf-8")
        yield
    finally:
        if new and [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            folder.rmdir()
        lock.release()


def _own() -> dict[str, Any]:
    """How other processes name this one."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now(UTC).isoformat(sep=" ", timespec="seconds")}


def _holder(path: Path) -> str:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        return f"process {told['pid']} on host {told['host']}, since {told['since']}"
    except (OSError, ValueError, KeyError, TypeError):  # it is just about to say who it is
        return "by a process that does not say which"
