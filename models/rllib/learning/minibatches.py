"""Flatten fragments into rows, and draw minibatches of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.rllib.learning.all_reduce import DataParallel

Rows = Mapping[str, Any]
"""Name -> (R, ...) tensor, or a mapping of such: rows of one kind of cluster, since others differ in the number of experts."""


def flatten(columns: Mapping[str, Any], taken: NDArray[np.bool_], device: Any) -> dict[str, Any]:
    """Rows of (T, B, ...) arrays, where ``taken`` (T, B) is true; floats become float32."""

    def flat(x: NDArray[Any]) -> Tensor:
        x = x[taken]
        return torch.from_numpy(x if x.dtype == np.int64 else np.ascontiguousarray(x, np.float32)).to(device)

    return {key: flatten(x, taken, device) if isinstance(x, Mapping) else flat(x) for key, x in columns.items()}


def take(rows: Rows, index: Tensor) -> dict[str, Any]:
    """Some of the rows."""
    return {key: take(x, index) if isinstance(x, Mapping) else x[index] for key, x in rows.items()}


def minibatches(
    samples: Sequence[Rows], sizes: Sequence[int], count: int, generator: torch.Generator, parallel: DataParallel
) -> Iterator[list[tuple[dict[str, Any], float]]]:
    """Split all rows into minibatches, each with its share of every sample.

    Yields:
        (rows, their share of the minibatch) for each sample: of several learners, to each its part.
    """
    orders = [torch.randperm(size, generator=generator).tensor_split(count) for size in sizes]
    for drawn in zip(*orders, strict=True):
        total = sum(map(len, drawn))
        parts = [index[parallel.part(len(index))] for index in drawn]
        yield [(take(rows, index), len(index) / total) for rows, index in zip(samples, parts, strict=True) if len(index)]
