"""Decide whether a command resumes a run or begins one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rllib_envs.errors import InputError
from tuning.run_dir.remote_copy import RemoteCopy


class Start(Protocol):
    """The options of a command that decide it."""

    @property
    def run_dir(self) -> Path:
        """Run directory."""
        ...

    @property
    def resume(self) -> bool:
        """Resume; there must be a run."""
        ...

    @property
    def auto_resume(self) -> bool:
        """Resume if there is a run, else begin one."""
        ...


def resumes(start: Start, remote_copy: RemoteCopy | None, what: str, exists: Callable[[], bool]) -> bool:
    """Decide whether to resume. Fetches the run from the storage first, if the copy there is newer.

    Args:
        start: what was asked for.
        remote_copy: of the run directory, if there is a storage.
        what: what the folder holds, for the message.
        exists: whether the run directory holds one, asked after fetching.

    Raises:
        InputError: the folder or the storage has a run, but the user did not ask to resume; the storage cannot be read.
    """
    asked = start.resume or start.auto_resume
    if asked and remote_copy is not None:
        remote_copy.fetch()
    here = exists()
    if not asked and (here or (remote_copy is not None and remote_copy.holds_run())):
        where = start.run_dir if here or remote_copy is None else remote_copy.place
        raise InputError(f"{where}: holds a {what} already: --resume goes on with it, another --run-dir begins anew")
    return start.resume or here
