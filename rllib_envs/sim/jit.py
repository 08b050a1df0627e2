"""The decorator of every compiled function, with an on-disk cache that can never serve stale machine code."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numba.core.config
from numba.extending import intrinsic

_PACKAGE = Path(__file__).resolve().parents[1]


def _cache_dir() -> str:
    """Folder for compiled code, named by a digest of the sources that go into it.

    numba re-compiles a function when its own file changes, not when a file it calls into does; a folder per state of the
    sources closes that hole. Every worker process of a run shares it, so each kernel is compiled once.
    """
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(_PACKAGE.rglob("*.py")):
        text = source.read_bytes()
        if b"@kernel" in text or source.parent.name == "sim":  # kernels, and the constants they are compiled with
            digest.update(text)
    base = os.environ.get("NUMBA_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "edgeroute"
    )
    return os.path.join(base, digest.hexdigest()[:16])


_CACHE_DIR = _cache_dir()


def kernel(function: Callable[..., Any]) -> Any:
    """Compile ``function`` in nopython mode; cached on disk, releases the GIL, IEEE arithmetic (no fast-math)."""
    config: Any = numba.core.config
    before = config.CACHE_DIR
    config.CACHE_DIR = _CACHE_DIR  # read once, at decoration; put back so that other users of numba keep theirs
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    finally:
        config.CACHE_DIR = before


def _borrow(typing_context: Any, array: Any) -> Any:
    """The same array without reference counting, for use inside the kernel that was given it.

    Views of it and records in it cost no atomic operations then, which are a fifth of the time of the small kernels here. The
    caller of the outermost kernel keeps the array alive.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        struct = context.make_array(array)(context, builder, arguments[0])
        struct.meminfo = struct.meminfo.type(None)
        return struct._getvalue()

    return array(array), codegen


borrow: Any = intrinsic(_borrow)
