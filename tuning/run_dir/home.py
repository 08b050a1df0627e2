"""Paths in the user's home folder, which may not exist."""

from __future__ import annotations

import os
from pathlib import Path

from rllib_envs.errors import InputError


def in_home(path: Path) -> Path:
    """The path with ``~`` replaced by the user's home folder.

    Raises:
        InputError: the user has no home, as in a container whose user is only a number.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise InputError(f"{path}: user {os.geteuid()} has no home folder: set HOME") from None
