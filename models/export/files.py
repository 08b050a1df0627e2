"""Files and folders written whole or not at all, whenever the process or the machine may die.

What is under way has a hidden name of its own and is locked. The operating system frees the lock of a process that dies, so the
next writer knows what was left behind and deletes it.
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
    """A new folder to write to, which becomes ``target`` when all is well: flushed to the disk, then renamed.

    Whatever was there before is replaced, in one step where the file system can do that. If an error comes, also of the writer's,
    it stays as it was and nothing new is left.

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
    """Put back what stood under the name, should a process have died halfway; delete what such processes left.

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
    """A new, empty file beside ``target``, to write to and to rename. It is deleted in the end if it is still there.

    What processes that died have left of the same target is deleted.

    Args:
        target: file that it is to become.
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
    """Rename ``staged`` to ``target``; what stood there is under the other name then, or gone."""
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
    """Something new with a name that no other has, locked where the file system has locks."""
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
    """What ``_own`` has made there and no process has any more. While the caller looks at one, it is locked."""
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
    """Whether it is locked now: not if another process has the lock, and None where there are no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
