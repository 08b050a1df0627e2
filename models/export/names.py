"""Validate file names from outside: from a manifest, a storage or an archive, by one rule."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from rllib_envs.errors import InputError

_MOST_BYTES, _MOST_PARTS = 255, 32  # of a part, which is what file systems take; of a name


def inner_name(name: object, where: object) -> PurePosixPath:
    """Parse a name as a relative path that stays within its folder.

    Args:
        name: parts with ``/`` between them.
        where: what it was read from, for the message.

    Raises:
        InputError: it is no text, empty or absolute, has too many parts, or one that is empty, ``.``, ``..``, too long, or has
            a backslash, a control character or what UTF-8 lacks.
    """
    fault = _fault(name)
    if fault:
        raise InputError(f"{where}: name {name!r:.200}: {fault}: refused, names must stay within their folder")
    return PurePosixPath(str(name))


def inner_path(folder: Path, name: object, where: object) -> Path:
    """The path of such a name in a folder, without links among its parts.

    Raises:
        InputError: as ``inner_name``, or a part is a link.
    """
    path = folder
    for part in inner_name(name, where).parts:
        path /= part
        if path.is_symlink():
            raise InputError(f"{path}: is a link: {where} names a file there, and it may only write within {folder}")
    return path


def _fault(name: object) -> str | None:
    if not isinstance(name, str) or not name:
        return "must be a text that is not empty"
    parts = name.split("/")
    if not parts[0]:
        return "is absolute"
    if len(parts) > _MOST_PARTS:
        return f"has more than {_MOST_PARTS} parts"
    for part in parts:
        if part in ("", ".", ".."):
            return f"has the part {part!r}"
        if "\\" in part or not part.isprintable():
            return "has a backslash or a control character"
        try:
            if len(part.encode()) > _MOST_BYTES:
                return f"has a part of more than {_MOST_BYTES} bytes"
        except UnicodeEncodeError:
            return "is not Unicode"
    return None
