"""The ONNX graph of a bundle as a function: for runtimes without torch."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.export.description import DESCRIPTION
from models.export.manifest import manifest_in, read_description, read_file
from rllib_envs.errors import InputError

ONNX_FILE = "router.onnx"
"""File of a bundle that has its graph."""

_MOST_BYTES = 2**29  # of a graph


def load_onnx(folder: Path) -> Callable[[Mapping[str, NDArray[np.float32]]], NDArray[np.float32]]:
    """Load the bundle's ONNX graph as a function of an observation's arrays, on one thread; ignores unused arrays.

    Raises:
        InputError: the package onnxruntime is not installed, the bundle has no graph, or another than was written.
    """
    path, where = folder / ONNX_FILE, folder / DESCRIPTION
    if not path.is_file():
        raise InputError(f"{folder}: {ONNX_FILE} is missing: export the router without --no-onnx")
    data = read_file(path, _MOST_BYTES, "bundle")
    if hashlib.sha256(data).hexdigest() != manifest_in(read_description(where, "bundle"), where).sha256.get(ONNX_FILE):
        raise InputError(f"{path}: damaged: its SHA-256 is not the one in {where.name}")
    return graph_scores(data)


def graph_scores(graph: bytes) -> Callable[[Mapping[str, NDArray[np.float32]]], NDArray[np.float32]]:
    """The scores of a graph as a function of an observation's arrays.

    Raises:
        InputError: the package onnxruntime is not installed.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise InputError("ONNX needs the package onnxruntime: pip install 'edgeroute[onnx]'")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    def scores(observation: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        (found,) = session.run(["scores"], {name: observation[name] for name in names})
        return np.asarray(found)

    return scores
