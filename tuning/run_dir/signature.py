"""Sign checkpoints and sweeps with a secret key of the user, and check the signatures.

Training state holds pickles, and loading a pickle runs its author's code. So a run is resumed only if this user wrote it or says
that its author is trusted. Files that are only read, such as the router of a checkpoint, hold no pickles and need no signature.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import stat
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from shlex import quote
from typing import Any

from rllib_envs.errors import InputError
from tuning.run_dir.atomic import write_secret
from tuning.run_dir.home import in_home

KEY_FILE = "EDGEROUTE_CHECKPOINT_KEY_FILE"
"""Environment variable: file of the key, for several hosts or users to share one. It is made where it is missing."""

_SIGNATURE = "signature"
_KEY_BYTES, _MOST_KEY_BYTES = 32, 4096
_ID_DIGITS = 12  # of the key's digest, which identifies a key and reveals nothing else about it
_DERIVED = b"edgeroute key 1\n"
_PURPOSE = b"edgeroute signature 1\n"  # apart from whatever else the key may be used for


def signed(contents: Mapping[str, Any], key: bytes | None = None) -> dict[str, Any]:
    """Add a signature to the contents: HMAC-SHA256 over the others, with the user's key or another.

    If there can be no key they stay unsigned, with one warning.
    """
    key = _own_key() if key is None else key
    if key is None:
        return dict(contents)
    return {**contents, _SIGNATURE: {"key": _name(key), "hmac_sha256": _code(key, contents)}}


def derived_key(nonce: str) -> bytes | None:
    """Derive a key for processes elsewhere, which reveals nothing of the user's own; None if there can be no key."""
    key = _own_key()
    return None if key is None else hmac.new(key, _DERIVED + nonce.encode(), hashlib.sha256).digest()


def check_signature(contents: Mapping[str, Any], where: Path, *, trusted: bool, key: bytes | None = None) -> None:
    """Check that this user wrote the contents. Call it before unpickling anything.

    Args:
        contents: as ``signed`` gave them.
        where: file that they were read from.
        trusted: the user trusts its author.
        key: that it was signed with; None for the user's.

    Raises:
        InputError: somebody else did, or it was changed since; the key cannot be read.
    """
    if trusted:
        return
    told = contents.get(_SIGNATURE)
    key = _key(key_path(), make=False) if key is None else key
    if not isinstance(told, dict):
        reason = "it is not signed"
    elif key is None:
        reason = f"it is signed with another key than yours: you have none in {key_path()}"
    elif told.get("key") != _name(key):
        reason = f"it is signed with another key than the one in {key_path()}"
    elif not hmac.compare_digest(str(told.get("hmac_sha256")).encode(), _code(key, contents).encode()):
        reason = "it was changed after you had signed it"
    else:
        return
    raise InputError(
        f"{where}: {reason}: going on from there runs pickled code that came from elsewhere. If you trust whoever wrote it, "
        "--trust-checkpoint loads it all the same"
    )


def _own_key() -> bytes | None:
    """The user's key, created if missing; None, with a warning, if there can be none."""
    try:
        return _key(key_path(), make=True)
    except InputError as error:
        _warn(f"checkpoints are not signed, to resume takes --trust-checkpoint: {error}")
        return None


def key_path() -> Path:
    """Where the user's key is, or would be.

    Raises:
        InputError: the user has no home folder, and nothing names another.
    """
    if named := os.environ.get(KEY_FILE):
        return in_home(Path(named))
    config = os.environ.get("XDG_CONFIG_HOME") or in_home(Path("~/.config"))
    return Path(config) / "edgeroute" / "checkpoint.key"


def _key(path: Path, *, make: bool) -> bytes | None:
    """Read the key from the file, or create it on request; None if there is none.

    Raises:
        InputError: the file cannot be read or made, is too short for a key, or others could have written or read it.
    """
    try:
        if make and not path.exists():
            write_secret(path, secrets.token_bytes(_KEY_BYTES))
        with path.open("rb") as file:
            _refuse_shared(path, os.fstat(file.fileno()))
            key = file.read(_MOST_KEY_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"key {path}: {error.strerror or error}; {KEY_FILE} names another file") from None
    if len(key) < _KEY_BYTES:
        raise InputError(f"key {path}: has {len(key)} bytes: must have {_KEY_BYTES} or more")
    return key


def _refuse_shared(path: Path, status: os.stat_result) -> None:
    """Check that a key file is private to the user, as ssh does.

    A key of root is accepted too, and its group may read it, so that a mounted secret reaches a container.

    Raises:
        InputError: it is not; the message says how to fix that.
    """
    folder, own, mode = path.resolve().parent, os.getuid(), stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"key {path}: is no file")
    if status.st_uid not in (own, 0):
        raise InputError(f"key {path}: belongs to user {status.st_uid}, who could change it: copy it to a file of your own")
    if mode & (0o077 if status.st_uid == own else 0o037):
        raise InputError(f"key {path}: others may read or write it (mode {mode:04o}): chmod 600 {quote(str(path))}")
    place = folder.stat()
    others = stat.S_IMODE(place.st_mode) & 0o022 and not place.st_mode & stat.S_ISVTX  # sticky: only who owns a file replaces it
    if others or place.st_uid not in (own, 0):
        fix = f"chmod go-w {quote(str(folder))}" if place.st_uid in (own, 0) else "move it to a folder of your own"
        raise InputError(f"key {path}: others may replace it, as they may write to its folder: {fix}")


def _name(key: bytes) -> str:
    return hashlib.sha256(_PURPOSE + key).hexdigest()[:_ID_DIGITS]


def _code(key: bytes, contents: Mapping[str, Any]) -> str:
    others = {name: value for name, value in contents.items() if name != _SIGNATURE}
    return hmac.new(key, _PURPOSE + json.dumps(others, sort_keys=True).encode(), hashlib.sha256).hexdigest()


@cache
def _warn(message: str) -> None:
    """Warn once."""
    print(f"edgeroute: warning: {message}", file=sys.stderr)
