"""Whether a start goes on with a run or begins one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from rllib_envs.errors import InputError
from tuning.run_dir.remote_copy import Mirror


class Start(Protocol):
    """What the options of a command say of that."""

    @property
    def run_dir(self) -> Path:
        """Run directory."""
        ...

    @property
    def resume(self) -> bool:
        """There must be a run to go on with."""
        ...

    @property
    def auto_resume(self) -> bool:
        """Go on if there is one."""
        ...


def goes_on(start: Start, mirror: Mirror | None, what: str, exists: Callable[[], bool]) -> bool:
    """Whether to go on; what there is to go on with is fetched from the storage, if that knows more of it than the folder.

    Args:
        start: what was asked for.
        mirror: of the run directory, if there is a storage.
        what: what the folder holds, for the message.
        exists: whether the run directory holds one, asked after fetching.

    Raises:
        InputError: the folder or the storage has one, and it was not asked to go on; the storage cannot be read.
    """
    asked = start.resume or start.auto_resume
    if asked and mirror is not None:
        mirror.fetch()
    here = exists()
    if not asked and (here or (mirror is not None and mirror.holds_run())):
        where = start.run_dir if here or mirror is None else mirror.place
        raise InputError(f"{where}: holds a {what} already: --resume goes on with it, another --run-dir begins anew")
    return start.resume or here
