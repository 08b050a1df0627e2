"""The ledgers of several gateways in one file that all of them map into memory: each sees what all have under way.

Nobody waits for anybody. A row is written before the number of its expert, so others see it whole. While a gateway moves its rows
together, others may for one decision see some of its requests twice or not at all.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

from rllib_envs.sim.seen import Seen, clear_seen, seen_fields

_ALIGN = 64  # bytes of a cache line


def create_shared(path: Path, gateways: int, capacity: int, n_experts: int) -> None:
    """Write the file for so many gateways, all of them with nothing under way; only its owner may read it.

    Args:
        path: of the file; best on a file system in memory.
        gateways: their number.
        capacity: rows of each.
        n_experts: number of experts.

    Raises:
        OSError: it cannot be written, or is there already.
    """
    size = sum(_size(shape, kind) for shape, kind in seen_fields(gateways, capacity, n_experts).values())
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.truncate(descriptor, size)
    finally:
        os.close(descriptor)
    seen = map_shared(path, gateways, capacity, n_experts)
    for gateway in range(gateways):
        clear_seen(seen, gateway)


def map_shared(path: Path, gateways: int, capacity: int, n_experts: int) -> Seen:
    """The arrays in the file, which keep it mapped.

    Raises:
        OSError: it cannot be read, or has not the size for such gateways.
    """
    fields = seen_fields(gateways, capacity, n_experts)
    with path.open("r+b") as file:
        expected, found = sum(_size(*field) for field in fields.values()), os.fstat(file.fileno()).st_size
        if found != expected:
            raise OSError(f"{path}: has {found} bytes: must have {expected} for {gateways} gateways and {n_experts} experts")
        memory = mmap.mmap(file.fileno(), 0)
    arrays: dict[str, np.ndarray] = {}
    place = 0
    for name, (shape, kind) in fields.items():
        arrays[name] = np.frombuffer(memory, kind, int(np.prod(shape)), place).reshape(shape)
        place += _size(shape, kind)
    return Seen(**arrays)


def _size(shape: tuple[int, ...], kind: str) -> int:
    """Bytes of an array in the file, up to where the next begins."""
    return -(-int(np.prod(shape)) * np.dtype(kind).itemsize // _ALIGN) * _ALIGN
