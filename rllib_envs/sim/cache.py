"""The folder for compiled code. Nobody else can write to it, since the cache holds pickles, which run code."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

_VARIABLE = "NUMBA_CACHE_DIR"
_PRIVATE = 0o700


def cache_folder(name: str) -> Path | None:
    """A folder for compiled code, created if necessary; None if the file system has no place for one.

    It is in NUMBA_CACHE_DIR, else in the user's cache folder. A user who can write to neither gets a temporary folder, and a line
    on stderr. Child processes use the same folder.

    Args:
        name: of the folder, in that place.
    """
    place = _usual_place()
    try:
        return _private(place / name)
    except OSError as error:
        fault = error.strerror or str(error)
    instead = _temporary(name)
    if multiprocessing.parent_process() is None:  # only the first process prints it
        what = f"it is kept in {instead.parent}" if instead else "every start compiles anew"
        print(
            f"edgeroute: warning: {place}: cannot keep compiled code: {fault}: {what}; {_VARIABLE} names another folder",
            file=sys.stderr,
        )
    if instead is not None:
        os.environ[_VARIABLE] = str(instead.parent)
    return instead


def _usual_place() -> Path:
    if named := os.environ.get(_VARIABLE):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(cache):  # the XDG specification ignores relative paths
        cache = os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache, "edgeroute")


def _temporary(name: str) -> Path | None:
    """The user's own temporary folder. If somebody else owns a folder of its name: a new one for this process."""
    try:
        place = Path(tempfile.gettempdir())
        try:
            return _private(place / f"edgeroute-{os.geteuid()}" / name)
        except OSError:
            fresh = Path(tempfile.mkdtemp(prefix="edgeroute-", dir=place))
            (fresh / name).mkdir(_PRIVATE)
    except OSError:
        return None
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(fresh, ignore_errors=True) if os.getpid() == owner else None)
    return fresh / name


def _private(folder: Path) -> Path:
    """The folder, created if necessary, without links in its path.

    Raises:
        OSError: it is not writable, others can write to it, or others can replace it.
    """
    if not folder.is_absolute() and str(folder).startswith("~"):
        raise OSError("the user has no home folder")
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(_PRIVATE, parents=True, exist_ok=True)
    folder.mkdir(_PRIVATE, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
    own, trusted = os.geteuid(), {0, os.geteuid(), os.stat("/").st_uid}
    if folder.stat().st_uid != own or folder.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise OSError(f"{folder} is another user's, or others can write to it")
    for parent in folder.parents:
        status = parent.stat()
        if status.st_uid not in trusted or status.st_mode & (stat.S_IWOTH | stat.S_ISVTX) == stat.S_IWOTH:
            raise OSError(f"{parent} is another user's, or others can write to it")
    return folder
