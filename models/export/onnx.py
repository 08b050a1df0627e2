"""Export the router as an ONNX graph, for runtimes without torch."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.export.onnx_scores import ONNX_FILE, graph_scores
from models.export.traced import Positional, random_observation
from models.router import Router
from rllib_envs.errors import InputError
from rllib_envs.scenario import Observation

_TOLERANCE = 1e-4
_OPSET = 18


def export_onnx(folder: Path, router: nn.Module, observation: Observation) -> float:
    """Write ``router.onnx`` for any number of clusters, and check it against torch.

    Inputs are the arrays that the router reads of an observation, by name, the output ``scores``, (B, N + 1). How many experts
    and slots there are is free too.

    Returns:
        The largest difference to torch's scores, over random observations of two sizes.

    Raises:
        InputError: the packages of the extra ``onnx`` are not installed, the router cannot be exported, or the graph does not
            give torch's scores.
    """
    if not isinstance(router, Router):
        raise InputError("the paper's policy cannot be exported to ONNX: leave it out with --no-onnx")
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            raise InputError(f"ONNX needs the package {package}: pip install 'edgeroute[onnx]', or leave it out: --no-onnx")
    if router.spec.encoder == "pooled":
        raise InputError("encoder = 'pooled': its sparse graph cannot be exported to ONNX: leave it out (--no-onnx)")
    example = random_observation(observation, batch=2, experts=3, seed=0)
    names = list(example)
    axes: dict[str, dict[int, str]] = {name: {0: "clusters"} for name in names}
    for name in names:
        if name not in ("cluster", "action_mask"):
            axes[name][1] = "experts"
        if name.startswith(("running", "waiting")):
            axes[name][2] = f"{name.partition('_')[0]}_slots"
    axes["action_mask"][1] = "actions"
    path = folder / ONNX_FILE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own, about the exporter that takes dynamic axes by name
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # pyright: ignore[reportPrivateImportUsage]
        torch.onnx.export(
            Positional(router, names).eval(), tuple(example.values()), path, input_names=names, output_names=["scores"],
            dynamic_axes=axes, opset_version=_OPSET, dynamo=False,
        )  # fmt: skip
    worst = max(
        _difference(folder, router, random_observation(observation, batch=batch, experts=experts, seed=1))
        for batch, experts in ((1, 6), (5, 2))
    )
    if not worst < _TOLERANCE:
        raise InputError(f"{path}: its scores differ from torch's by {worst:g}: at most {_TOLERANCE:g} is allowed")
    return worst


def _difference(folder: Path, router: Router, observation: dict[str, Tensor]) -> float:
    scores = graph_scores((folder / ONNX_FILE).read_bytes())({name: x.numpy() for name, x in observation.items()})
    with torch.inference_mode():
        expected = router(observation).numpy()
    return float(np.abs(scores - expected).max())
