"""The signed copy of Ray Tune's state: a sweep resumes only from what this user's processes wrote.

The state is several files that change all the time, so no signature beside them would always match. The copy is one file,
replaced atomically before any of them changes.
"""

from __future__ import annotations

import base64
import json
import os
import posixpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.export.manifest import read_file
from rllib_envs.errors import InputError
from tuning.run_dir.atomic import write_bytes
from tuning.run_dir.signature import check_signature, signed

if TYPE_CHECKING:
    from tuning.run_dir.remote_copy import RemoteCopy
    from tuning.sweeps.tune_state import State

STATE = "tune-state.json"
"""The copy, beside Tune's folder: in the storage if there is one."""

_FILES = "files"
_MOST_BYTES = 2**28
_MOST_LEVELS = 2  # a trial's folder is in Tune's


def own_state(folder: Path, remote_copy: RemoteCopy | None, *, resume: bool, trusted: bool) -> tuple[str, Any]:
    """Path of Tune's folder and its file system, through which Tune reads only state that this user's sweep wrote.

    Args:
        folder: Tune's folder here.
        remote_copy: copy of the run directory in the storage, which has Tune's folder then.
        resume: whether the sweep goes on from the state there; without it there is none at first.
        trusted: whether the state counts that lies there, whoever wrote it. It counts as one's own from then on.

    Raises:
        InputError: the state is not what this user signed, and is not trusted; it cannot be read or written.
    """
    from fsspec.implementations.local import LocalFileSystem
    from pyarrow.fs import PyFileSystem

    from tuning.sweeps.tune_state import OwnState

    file = folder.parent / STATE
    place, filesystem = (str(folder), LocalFileSystem()) if remote_copy is None else remote_copy.shared(folder.name)

    def keep(state: State) -> None:
        if remote_copy is None:
            write_bytes(file, packed(state))
        else:
            remote_copy.write(STATE, packed(state))

    known: State | None = {}
    if resume and trusted:
        known = found_state(filesystem, place)
        keep(known)
    elif resume:
        known = _signed_state(file, remote_copy)
        if known is None and found_state(filesystem, place):
            where = file if remote_copy is None else f"{remote_copy.place}/{STATE}"
            raise InputError(
                f"{where}: missing: Ray Tune's state is not signed: it is of an earlier version, or was tampered with."
                " If you trust whoever wrote it, --trust-checkpoint loads it all the same"
            )
    return place, PyFileSystem(OwnState(filesystem, place, known or {}, keep))


def _signed_state(file: Path, remote_copy: RemoteCopy | None) -> State | None:
    """Read the copy, from the storage if there is one; None if there is no copy."""
    if remote_copy is not None:
        data, where = remote_copy.read(STATE, _MOST_BYTES), f"{remote_copy.place}/{STATE}"
        return None if data is None else unpacked(data, where)
    return unpacked(read_file(file, _MOST_BYTES, "sweep"), file) if os.path.lexists(file) else None


def packed(state: State) -> bytes:
    """Pack and sign the state."""
    return json.dumps(signed({_FILES: {name: base64.b64encode(data).decode() for name, data in state.items()}})).encode()


def unpacked(data: bytes, where: Path | str) -> State:
    """Unpack the state and check the signature.

    Raises:
        InputError: somebody else signed it, or nobody, or it is damaged.
    """
    try:
        contents: dict[str, Any] = json.loads(data)
        files = {name: base64.b64decode(text, validate=True) for name, text in contents[_FILES].items()}
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError) as error:
        raise InputError(f"{where}: damaged: {type(error).__name__}") from None
    check_signature(contents, Path(where), trusted=False)
    return files


def found_state(filesystem: Any, folder: str) -> State:
    """Read Tune's state from its folder, without a check of its author.

    Raises:
        InputError: it cannot be read.
    """
    from tuning.sweeps.tune_state import is_state

    try:
        if not filesystem.isdir(folder):
            return {}
        paths = {posixpath.relpath(path, folder): path for path in filesystem.find(folder, maxdepth=_MOST_LEVELS)}
        return {name: filesystem.cat_file(path) for name, path in paths.items() if is_state(name)}
    except OSError as error:
        raise InputError(f"{folder}: Ray Tune's state cannot be read: {error.strerror or error}") from None
