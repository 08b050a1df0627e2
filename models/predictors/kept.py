"""Fits that are kept until all are done, so that an interrupted command goes on with what it has."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from models.export.files import staged_file
from models.predictors.weights import Weights
from rllib_envs.errors import InputError


class KeptFits:
    """Weights by name in a hidden folder beside the target; those of other data or settings are not found.

    Args:
        target: folder that the fits are for.
        what: everything that determines them.
    """

    def __init__(self, target: Path, what: str) -> None:
        self._beside = target.resolve().parent
        self._prefix = f".{target.name}-fits-"
        self._folder = self._beside / f"{self._prefix}{hashlib.sha256(what.encode()).hexdigest()[:16]}"

    def has(self, name: str) -> bool:
        """Whether there is a fit of that name, and a whole one."""
        return _read(self._path(name)) is not None

    def get(self, name: str, fit: Callable[[], Weights]) -> Weights:
        """The fit of that name: read, or made and kept. A damaged one is made anew.

        Raises:
            InputError: the place cannot be written to.
        """
        path = self._path(name)
        kept = _read(path)
        if kept is not None:
            return kept
        made = fit()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with staged_file(path) as staged:
                staged.write_bytes(save(dict(made.arrays())))
                os.replace(staged, path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror or error}") from error
        return made

    def clear(self) -> None:
        """Delete the fits for the target, those of other settings too."""
        for folder in self._beside.glob(f"{glob.escape(self._prefix)}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _path(self, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"


def _read(path: Path) -> Weights | None:
    try:
        arrays = load(path.read_bytes())
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    wanted = {field.name for field in fields(Weights)}
    good = set(arrays) == wanted and all(x.dtype == np.float32 and np.isfinite(x).all() for x in arrays.values())
    return Weights(**arrays) if good else None
