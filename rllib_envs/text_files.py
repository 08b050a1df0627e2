"""Files from users: read whole, up to a size limit; text in UTF-8."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from rllib_envs.errors import InputError

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path, most_bytes: int) -> str:
    """The text of a regular UTF-8 file, independent of the locale, without a leading byte order mark.

    Args:
        path: file, or a link to one.
        most_bytes: size limit; a larger file is refused before it is read.

    Raises:
        InputError: no such file, no permission, not a regular file, too large, or not UTF-8 text.
    """
    data = read_bytes(path, most_bytes)
    if data.startswith(_UTF16):
        raise InputError(f"{path}: is in UTF-16: save it as UTF-8")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise InputError(f"{path}:{line}: holds a zero byte: not a text file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}:{line}: byte {data[error.start]:#04x}: not a text file in UTF-8") from None


def read_bytes(path: Path, most_bytes: int) -> bytes:
    """The bytes of a regular file, or of one that a link leads to.

    Args:
        path: file.
        most_bytes: size limit; a larger file is refused before it is read.

    Raises:
        InputError: no such file, no permission, not a regular file, or too large.
    """
    try:
        with open(path, "rb", opener=_open) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise InputError(f"{path}: is {_KINDS.get(stat.S_IFMT(about.st_mode), 'something else')}, not a file")
            if about.st_size > most_bytes:
                raise InputError(f"{path}: has {about.st_size:,} bytes: at most {most_bytes:,} are read")
            return file.read(most_bytes)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:  # a NUL character in the path
        raise InputError(f"{str(path)!r}: cannot be read: {error}") from None


def _open(path: str, flags: int) -> int:
    if stat.S_ISDIR(os.stat(path).st_mode):
        raise InputError(f"{path}: is a folder, not a file")
    return os.open(path, flags | os.O_NONBLOCK)  # else opening a pipe without a writer blocks
