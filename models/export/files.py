"""Atomic writes of files and folders, safe against the death of process or machine at any time.

A staged file has a hidden name and is locked. The operating system frees the lock of a dead process, so the next writer
recognises leftovers and deletes them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rllib_envs.errors import InputError

_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_HERE = -100  # AT_FDCWD
_DIGITS = 8
_NOT_SUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EXDEV, errno.EPERM)


@contextmanager
def staged_folder(target: Path) -> Generator[Path]:
    """Stage a new folder, which becomes ``target`` on success: flushed to the disk, then renamed.

    It replaces an existing target, in one step if the file system can. After an error, also one of the writer, the target is
    unchanged and no staged files remain.

    Raises:
        InputError: the place cannot be written to, or there is something else than a folder.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"{target}: is a file: a folder is to be written there")
    target = Path(os.path.realpath(target))  # of a link, what it leads to
    with ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            recover(target)
            staged = stack.enter_context(_own(target.parent, f".aside-{target.name}-", "", Path.mkdir))
        except OSError as error:
            raise InputError(f"{target}: cannot be written: {error.strerror}") from None
        try:
            yield staged
            for path in [*staged.rglob("*"), staged]:
                flush(path)
            _put(staged, target)
            flush(target.parent)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def recover(target: Path) -> None:
    """Restore the old target after a process died halfway, and delete leftovers of dead processes.

    Raises:
        OSError: the folder cannot be written to.
    """
    for old in _left(target.parent, f".old-{target.name}-", ""):
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)
    for staged in _left(target.parent, f".aside-{target.name}-", ""):
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def staged_file(target: Path, mode: int = 0o666) -> Generator[Path]:
    """Stage a new, empty file beside ``target``, to write to and to rename. At the end it is deleted if it still exists.

    Leftovers of dead processes for the same target are deleted.

    Args:
        target: the final file.
        mode: its rights, from which the process's mask is taken.

    Raises:
        OSError: the folder cannot be written to.
    """

    def make(path: Path) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))

    for path in _left(target.parent, f".{target.stem}-", target.suffix):
        path.unlink(missing_ok=True)
    with _own(target.parent, f".{target.stem}-", target.suffix, make) as staged:
        try:
            yield staged
        finally:
            staged.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(staged: Path, target: Path) -> None:
    """Rename ``staged`` to ``target``; an old target then has the other name, or is gone."""
    if not target.exists() or not any(target.iterdir()):  # a folder takes the place of an empty one in one step
        staged.rename(target)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        if libc.renameat2(_HERE, os.fsencode(staged), _HERE, os.fsencode(target), _EXCHANGE) == 0:
            return
        number = ctypes.get_errno()
        if number not in _NOT_SUPPORTED:
            raise OSError(number, os.strerror(number))
    old = target.parent / f".old-{target.name}-{secrets.token_hex(_DIGITS // 2)}"
    target.rename(old)
    try:
        staged.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _own(folder: Path, start: str, end: str, make: Callable[[Path], object]) -> Generator[Path]:
    """Create a file or folder with a unique name, locked if the file system has locks."""
    while True:
        path = folder / f"{start}{secrets.token_hex(_DIGITS // 2)}{end}"
        make(path)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:  # taken for something left behind
            continue
        if _lock(descriptor) is not False and path.exists():
            break
        os.close(descriptor)
    try:
        yield path
    finally:
        os.close(descriptor)


def _left(folder: Path, start: str, end: str) -> Generator[Path]:
    """Leftovers of ``_own`` from dead processes. Each is locked while the caller has it."""
    for path in sorted(folder.glob(f"{glob.escape(start)}{'[0-9a-f]' * _DIGITS}{glob.escape(end)}")):
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except OSError:
            continue
        try:
            if _lock(descriptor):
                yield path
        finally:
            os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Try to lock: False if another process has the lock, None if there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
