"""The router as an ONNX graph, for runtimes without torch."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.router import Router
from rllib_envs.errors import InputError
from rllib_envs.observation import allocate_view
from rllib_envs.scenario import Observation, load_scenario

ONNX_FILE = "router.onnx"
_TOLERANCE = 1e-4
_OPSET = 18


class _Positional(nn.Module):
    """The router with the arrays of an observation as arguments, in a fixed order."""

    def __init__(self, router: Router, names: list[str]) -> None:
        super().__init__()
        self.router, self.names = router, names

    def forward(self, *arrays: Tensor) -> Tensor:
        """(B, N + 1) masked scores."""
        return self.router(dict(zip(self.names, arrays, strict=True)))


def export_onnx(folder: Path, router: Router, observation: Observation) -> float:
    """Write ``router.onnx`` for any number of clusters, and check it against torch.

    Inputs are the arrays that the router reads of an observation, by name, the output ``scores``, (B, N + 1). How many experts
    and slots there are is free too.

    Returns:
        The largest difference to torch's scores, over random observations of two sizes.

    Raises:
        InputError: the packages of the extra ``onnx`` are not installed, the router's encoder cannot be exported, or the
            graph does not give torch's scores.
    """
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
            _Positional(router, names).eval(), tuple(example.values()), path, input_names=names, output_names=["scores"],
            dynamic_axes=axes, opset_version=_OPSET, dynamo=False,
        )  # fmt: skip
    worst = max(
        _difference(path, router, random_observation(observation, batch=batch, experts=experts, seed=1))
        for batch, experts in ((1, 6), (5, 2))
    )
    if not worst < _TOLERANCE:
        raise InputError(f"{path}: its scores differ from torch's by {worst:g}: at most {_TOLERANCE:g} is allowed")
    return worst


def random_observation(observation: Observation, *, batch: int, experts: int, seed: int) -> dict[str, Tensor]:
    """An observation of a given size with random entries of order one; no cluster it could be of."""
    rng = np.random.default_rng(seed)
    expert = load_scenario("edge2").experts[0]
    view = allocate_view(batch, [expert] * experts, observation)
    arrays: Mapping[str, Any] = {key: x for key, x in view._asdict().items() if x.size}
    drawn = {key: rng.random(x.shape, np.float32) for key, x in arrays.items()}
    for key in drawn:
        if key.endswith("_mask"):
            drawn[key] = (drawn[key] > 1 / 3).astype(np.float32)
    drawn["action_mask"][:, -1] = 1
    return {key: torch.from_numpy(x) for key, x in drawn.items()}


def _difference(path: Path, router: Router, observation: dict[str, Tensor]) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    used = [argument.name for argument in session.get_inputs()]  # what a router does not read is not among them
    (scores,) = session.run(["scores"], {name: observation[name].numpy() for name in used})
    with torch.inference_mode():
        expected = router(observation).numpy()
    return float(np.abs(np.asarray(scores) - expected).max())
