"""Shorten a GGUF model: the same file with its first layers alone.

The format is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A model without its last layers answers
nonsense, in a fraction of the time. So one file gives engines of several speeds.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

_MAGIC = b"GGUF"
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value by its type
_UINT32, _STRING, _ARRAY = 4, 8, 9
_ALIGNMENT = 32
_LAYER = re.compile(r"blk\.(\d+)\.")


class _Tensor(NamedTuple):
    """A tensor's entry in the file's head, and where its data lies after the head."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def shorten(model: Path, layers: int, out: Path) -> None:
    """Write ``model`` with its first ``layers`` layers to ``out``.

    Raises:
        ValueError: it is not a GGUF file of version 2 or 3, has another alignment than 32, or has fewer layers.
    """
    with model.open("rb") as file:
        if file.read(4) != _MAGIC or (version := _number(file, "I")) not in (2, 3):
            raise ValueError(f"{model}: not a GGUF file of version 2 or 3")
        tensor_count, field_count = _number(file, "Q"), _number(file, "Q")
        fields = [_field(file, layers) for _ in range(field_count)]
        tensors = [_tensor(file) for _ in range(tensor_count)]
        data_start = _aligned(file.tell())
        ends = dict(zip(sorted(t.offset for t in tensors), sorted(t.offset for t in tensors)[1:], strict=False))
        there = 1 + max((int(match[1]) for t in tensors if (match := _LAYER.match(t.name))), default=-1)
        if not 1 <= layers <= there:
            raise ValueError(f"{model}: layers = {layers}: must be from 1 to {there}, which it has")
        kept = [t for t in tensors if not ((match := _LAYER.match(t.name)) and int(match[1]) >= layers)]
        total = model.stat().st_size - data_start
        sizes = [ends.get(t.offset, total) - t.offset for t in kept]
        with out.open("wb") as short:
            short.write(_MAGIC + struct.pack("<IQQ", version, len(kept), field_count) + b"".join(fields))
            offset = 0
            for tensor, size in zip(kept, sizes, strict=True):
                short.write(_entry(tensor, offset))
                offset += _aligned(size)
            short.write(bytes(_aligned(short.tell()) - short.tell()))
            for tensor, size in zip(kept, sizes, strict=True):
                file.seek(data_start + tensor.offset)
                short.write(file.read(size))
                short.write(bytes(_aligned(size) - size))


def _field(file: BinaryIO, layers: int) -> bytes:
    """One field of the head as it stands there, but for the number of layers."""
    start = file.tell()
    key = _text(file)
    kind = _number(file, "I")
    if key == "general.alignment" and _number(file, "I") != _ALIGNMENT:
        raise ValueError(f"general.alignment: only {_ALIGNMENT} is read here")
    if key.endswith(".block_count") and kind == _UINT32:
        head = _bytes_since(file, start)
        file.seek(4, 1)
        return head + struct.pack("<I", layers)
    if key != "general.alignment":
        _skip(file, kind)
    return _bytes_since(file, start)


def _skip(file: BinaryIO, kind: int) -> None:
    if kind == _STRING:
        file.seek(_number(file, "Q"), 1)
    elif kind == _ARRAY:
        inner, count = _number(file, "I"), _number(file, "Q")
        if inner in _SIZES:
            file.seek(_SIZES[inner] * count, 1)
        else:
            for _ in range(count):
                _skip(file, inner)
    else:
        file.seek(_SIZES[kind], 1)


def _tensor(file: BinaryIO) -> _Tensor:
    name, dimensions = _text(file), _number(file, "I")
    shape = tuple(_number(file, "Q") for _ in range(dimensions))
    return _Tensor(name, shape, _number(file, "I"), _number(file, "Q"))


def _entry(tensor: _Tensor, offset: int) -> bytes:
    name = tensor.name.encode()
    dimensions = len(tensor.shape)
    return struct.pack(
        f"<Q{len(name)}sI{dimensions}QIQ", len(name), name, dimensions, *tensor.shape, tensor.kind, offset
    )  # "<" packs without padding


def _number(file: BinaryIO, code: str) -> int:
    return struct.unpack(f"<{code}", file.read(struct.calcsize(f"<{code}")))[0]


def _text(file: BinaryIO) -> str:
    return file.read(_number(file, "Q")).decode()


def _bytes_since(file: BinaryIO, start: int) -> bytes:
    end = file.tell()
    file.seek(start)
    return file.read(end - start)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
