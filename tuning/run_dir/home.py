"""Files in the user's home folder, which there need not be."""

from __future__ import annotations

import os
from pathlib import Path

from rllib_envs.errors import InputError


def in_home(path: Path) -> Path:
    """The path with ``~`` replaced by the user's home folder.

    Raises:
        InputError: the user has none, as in a container that runs with a mere number for a user.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise InputError(f"{path}: user {os.geteuid()} has no home folder: set HOME") from None
