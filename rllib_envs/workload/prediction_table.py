"""Tables of predictions for the prompts of a file: for each prompt by predictors that have not seen it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from rllib_envs.errors import InputError
from rllib_envs.expert import Expert
from rllib_envs.text_files import read_bytes
from rllib_envs.workload.lengths import MAX_TOKENS
from rllib_envs.workload.predicted import Predicted
from rllib_envs.workload.prompt_files import PREDICTED_KEYS, PromptFile

TABLE = "predictions.safetensors"
"""Its name in a folder of predictors."""

_MOST_BYTES = 2**30
_MODELS, _HEADER = "models", 8  # a header: its size in so many bytes, then JSON
_BOUNDS: Mapping[str, tuple[float, float]] = {
    "score": (0, 1),
    "output_tokens": (1, MAX_TOKENS),
    "log_sd": (0, PREDICTED_KEYS["predicted_log_sd"]),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PredictionTable:
    """Predictions for P prompts and A models: out of fold for the train split, by all of that split for the others."""

    models: tuple[str, ...]  # A names
    keys: NDArray[np.uint64]  # (P,) digests of ids and texts, ascending
    score: NDArray[np.float32]  # (P, A)
    output_tokens: NDArray[np.float32]  # (P, A)
    log_sd: NDArray[np.float32]  # (P, A)

    def write(self, path: Path) -> None:
        """Write the file."""
        arrays = {"keys": self.keys, **{name: getattr(self, name) for name in _BOUNDS}}
        path.write_bytes(save(arrays, metadata={_MODELS: json.dumps(self.models)}))

    def predicted(self, file: PromptFile, experts: Sequence[Expert]) -> Predicted:
        """(P, N) the predictions for the prompts of a file at N experts.

        Raises:
            InputError: it has none for a prompt, or none for an expert's model.
        """
        for expert in experts:
            if expert.model not in self.models:
                have = ", ".join(self.models)
                raise InputError(f"predictors: none for model {expert.model!r} of expert {expert.name!r}: they have {have}")
        keys = _keys(file)
        rows = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        absent = self.keys[rows] != keys
        if absent.any():
            first = file.ids[int(absent.argmax())]
            raise InputError(
                f"{file.path}: {absent.sum():,} of {absent.size:,} prompts are not among those that the predictors were fitted "
                f"with, by id and text (first: {first!r}): fit them with this file (edgeroute fit-predictors)"
            )
        columns = [self.models.index(expert.model) for expert in experts]
        return Predicted(**{name: getattr(self, name)[rows][:, columns].astype(np.float64) for name in _BOUNDS})


def check_ids(file: PromptFile) -> None:
    """Refuse prompts whose ids are not different.

    Raises:
        InputError: two prompts have one id.
    """
    seen: set[str] = set()
    for prompt_id in file.ids:
        if prompt_id in seen:
            raise InputError(f"{file.path}: two prompts have the id {prompt_id!r}: ids must differ")
        seen.add(prompt_id)


def table_of(file: PromptFile, models: Sequence[str], predicted: Predicted) -> PredictionTable:
    """The table of predictions (P, A) for the prompts of a file, whose ids differ, and for A models."""
    keys = _keys(file)
    order = np.argsort(keys)
    values = {name: np.clip(getattr(predicted, name), *bounds)[order] for name, bounds in _BOUNDS.items()}
    return PredictionTable(
        models=tuple(models), keys=keys[order], **{name: value.astype(np.float32) for name, value in values.items()}
    )


def read_table(folder: Path) -> PredictionTable:
    """Read the table of a folder of predictors; read once until it is modified.

    Raises:
        InputError: it cannot be read, is damaged, or no fit can have written it.
    """
    path = folder / TABLE
    try:
        mtime_ns = path.stat().st_mtime_ns
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}: no folder of edgeroute fit-predictors") from None
    return _read(path, mtime_ns)


@lru_cache(maxsize=4)
def _read(path: Path, mtime_ns: int) -> PredictionTable:  # mtime_ns: a modified file is a new entry of the cache
    data = read_bytes(path, _MOST_BYTES)
    try:
        arrays: dict[str, NDArray[Any]] = load(data)
        models = _models(data)
    except (SafetensorError, KeyError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: damaged: {error}") from None
    keys = arrays.pop("keys", np.zeros(0))
    ascending = keys.dtype == np.uint64 and keys.ndim == 1 and keys.size > 0 and bool((keys[1:] > keys[:-1]).all())
    if not ascending or set(arrays) != set(_BOUNDS):
        raise InputError(f"{path}: does not fit: it must have ascending keys, {', '.join(_BOUNDS)}")
    for name, (low, high) in _BOUNDS.items():
        values = arrays[name]
        if values.shape != (keys.size, len(models)) or values.dtype != np.float32:
            raise InputError(f"{path}: does not fit: {name} must be float32 {[keys.size, len(models)]}")
        if not ((values >= low) & (values <= high)).all():
            raise InputError(f"{path}: does not fit: {name} must be from {low} to {high}")
    return PredictionTable(models=models, keys=keys, **arrays)


def _models(data: bytes) -> tuple[str, ...]:
    """The models that the file names, once ``load`` has accepted its header."""
    size = int.from_bytes(data[:_HEADER], "little")
    names = json.loads(json.loads(data[_HEADER : _HEADER + size]).get("__metadata__", {}).get(_MODELS, "null"))
    if not isinstance(names, list) or len(set(map(str, names))) < len(names):
        raise ValueError("it must name different models")
    return tuple(map(str, names))


def _keys(file: PromptFile) -> NDArray[np.uint64]:
    """(P,) a digest of each prompt's id and text."""
    keys = np.empty(len(file.ids), np.uint64)
    for i, (prompt_id, text) in enumerate(zip(file.ids, file.texts, strict=True)):
        digest = hashlib.blake2b(digest_size=8)
        for part in (prompt_id, text or ""):
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8))
            digest.update(encoded)
        keys[i] = int.from_bytes(digest.digest())
    return keys
