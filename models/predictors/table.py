"""What predictors predict for the prompts they were fitted with: for each prompt by predictors that have not seen it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from models.export.manifest import read_file
from rllib_envs.errors import InputError

TABLE = "predictions.safetensors"
_MOST_BYTES = 2**30
_VALUES = ("score", "output_tokens", "log_sd")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PredictionTable:
    """Predictions for P prompts and A models: out of fold for the train split, by all of that split for the others."""

    keys: NDArray[np.uint64]  # (P,) digests of the ids, ascending
    score: NDArray[np.float32]  # (P, A)
    output_tokens: NDArray[np.float32]  # (P, A)
    log_sd: NDArray[np.float32]  # (P, A)

    def write(self, path: Path) -> None:
        """Write the file."""
        path.write_bytes(save({"keys": self.keys, **{name: getattr(self, name) for name in _VALUES}}))

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """(M,) the rows of the prompts with these ids, -1 where there is none."""
        keys = keys_of(ids)
        found = np.searchsorted(self.keys, keys).clip(max=len(self.keys) - 1)
        return np.where(self.keys[found] == keys, found, -1)


def keys_of(ids: Sequence[str]) -> NDArray[np.uint64]:
    """(M,) a digest of each id."""
    return np.array(
        [int.from_bytes(hashlib.blake2b(i.encode("utf-8", "surrogatepass"), digest_size=8).digest()) for i in ids], np.uint64
    )


def check_ids(ids: Sequence[str]) -> None:
    """Refuse ids that are not different.

    Raises:
        InputError: two prompts have one id.
    """
    keys = keys_of(ids)
    order = np.argsort(keys)
    same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if same.size:
        raise InputError(f"two prompts have the id {ids[int(order[same[0]])]!r}: ids must differ")


def table_of(
    ids: Sequence[str], score: NDArray[np.float64], output_tokens: NDArray[np.float64], log_sd: NDArray[np.float64]
) -> PredictionTable:
    """A table of predictions (P, A) for prompts with these ids.

    Raises:
        InputError: two prompts have one id.
    """
    check_ids(ids)
    keys = keys_of(ids)
    order = np.argsort(keys)
    values = {"score": score, "output_tokens": output_tokens, "log_sd": log_sd}
    return PredictionTable(keys=keys[order], **{name: value[order].astype(np.float32) for name, value in values.items()})


def load_table(folder: Path, models: int) -> PredictionTable:
    """Load the table of predictors for so many models, whose folder has been checked.

    Raises:
        InputError: it is damaged, or no fit can have written it.
    """
    path = folder / TABLE
    try:
        arrays = load(read_file(path, _MOST_BYTES, "predictors"))
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path}: damaged: {error}") from None
    keys = arrays.pop("keys", np.zeros(0))
    ascending = keys.dtype == np.uint64 and keys.ndim == 1 and keys.size > 0 and bool((keys[1:] > keys[:-1]).all())
    if not ascending or set(arrays) != set(_VALUES):
        raise InputError(f"{path}: does not fit: it must have ascending keys, {', '.join(_VALUES)}")
    for name, values in arrays.items():
        if values.shape != (keys.size, models) or values.dtype != np.float32 or not np.isfinite(values).all():
            raise InputError(f"{path}: does not fit: {name} must be float32 {[keys.size, models]}, all finite")
    return PredictionTable(keys=keys, **arrays)
