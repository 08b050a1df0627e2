"""Digests of files and of our own source code, by which results are known to be of the same making."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_OF_EXPERIMENTS = ("matrix", "metrics", "routers", "train")  # modules here that results depend on


def content_digest(paths: Sequence[Path]) -> str:
    """Digest of files, and of all files in folders: it changes whenever a byte or a name in a folder does."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(f"{file.relative_to(path)}\0{file.stat().st_size}\0".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


@cache
def code_digest() -> str:
    """Digest of the source code that determines results."""
    sources = [path for package in ("rllib_envs", "models") for path in sorted((_ROOT / package).rglob("*.py"))]
    return content_digest([*sources, *(_ROOT / "tuning" / f"{name}.py" for name in _OF_EXPERIMENTS)])
