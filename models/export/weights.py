"""Weights in a safetensors file, loaded only if they fit a given network and are all finite.

The network's size is known before its memory is taken, and no more of a file is read than that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional

from models.export.manifest import read_file
from models.relative_price import EARLIER_TERMS
from rllib_envs.errors import InputError

_MOST_BYTES = 2**28  # of weights: some thousand times those of the usual router
_HEADER_BYTES = 2**20  # of what describes them in the file
_TERMS = "price.terms"  # more of them came later, whose value in a router from before is 0

N = TypeVar("N", bound=nn.Module)


def save_weights(path: Path, network: nn.Module) -> None:
    """Write the weights of a network."""
    path.write_bytes(save({name: x.contiguous() for name, x in network.state_dict().items()}))


def load_weights(make: Callable[[], N], path: Path, sha256: str) -> N:
    """Build a network and load its weights, in evaluation mode.

    Args:
        make: makes the network.
        path: file of the weights.
        sha256: its digest.

    Raises:
        InputError: the network is too large; the file is another, or does not have exactly the network's tensors, with their
            types and shapes, all finite.
    """
    with torch.device("meta"):  # shapes without memory
        expected = make().state_dict()
    size = sum(x.numel() * x.element_size() for x in expected.values())
    if size > _MOST_BYTES:
        raise InputError(f"{path}: a network of {size:,} bytes: at most {_MOST_BYTES:,} are allowed")
    data = read_file(path, size + _HEADER_BYTES, "network")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise InputError(f"{path}: damaged: its SHA-256 is not the one that was written")
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise InputError(f"{path}: damaged: {error}") from None
    except KeyError as error:
        raise InputError(f"{path}: damaged: no type of tensors: {error}") from None
    if _TERMS in tensors and _TERMS in expected and tensors[_TERMS].shape == (EARLIER_TERMS,):
        tensors[_TERMS] = functional.pad(tensors[_TERMS], (0, max(expected[_TERMS].numel() - EARLIER_TERMS, 0)))
    fault = _misfit(tensors, expected)
    if fault:
        raise InputError(f"{path}: does not fit the network: {fault}")
    network = make()
    network.load_state_dict(tensors)
    return network.eval()


def _misfit(found: dict[str, Tensor], expected: dict[str, Tensor]) -> str | None:
    """How a file's tensors differ from the network's, or are not finite."""
    for name, wanted in expected.items():
        tensor = found.get(name)
        if tensor is None:
            return f"tensor {name!r} is missing"
        if (tensor.dtype, tensor.shape) != (wanted.dtype, wanted.shape):
            has, must = (f"{x.dtype} {list(x.shape)}" for x in (tensor, wanted))
            return f"tensor {name!r} is {has:.100}, it must be {must}"
        if not torch.isfinite(tensor).all():
            return f"tensor {name!r} has values that are not finite"
    more = sorted(set(found) - set(expected))
    return f"tensor {more[0]!r:.100} is none of the network's" if more else None
