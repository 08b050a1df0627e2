"""A router as a traced graph, for single decisions: torch alone, without Python between operations.

For a single cluster, the overhead of an operation exceeds its arithmetic, and eager torch has the largest overhead. The graph is
traced once, for any number of clusters, experts and slots; freezing it computes what depends on weights alone.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.paper.networks import PaperPolicy
from models.router import Router
from rllib_envs.scenario import Observation
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.view import allocate_rows, view_of

Scores = Callable[[Mapping[str, Tensor]], Tensor]
"""(B, N + 1) masked scores of an observation."""

_FIRST_CALLS = 3  # in which torch looks at the graph and prepares it, which takes it a hundred times as long
_ARITHMETIC = ("aten::add", "aten::sub", "aten::mul", "aten::div")
_TO_THE_END = [0, 2**63 - 1, 1]  # start, end and step of a slice that leaves nothing out


class Positional(nn.Module):
    """The router with an observation's arrays as positional arguments, as tracing takes no dictionaries.

    Args:
        router: what to call.
        names: of the arrays, in the arguments' order.
    """

    def __init__(self, router: Router, names: Sequence[str]) -> None:
        super().__init__()
        self.router, self.names = router, tuple(names)

    def forward(self, *arrays: Tensor) -> Tensor:
        """(B, N + 1) masked scores."""
        return self.router(dict(zip(self.names, arrays, strict=True)))


def fast_scores(network: Router | PaperPolicy, example: Mapping[str, Tensor]) -> Scores:
    """Scores of a network with fixed weights, from a traced graph if possible, else from the network itself.

    The paper's policy and the encoder ``pooled`` have no traced graph, as their sparse graphs have no fixed operations. A graph's
    scores equal the router's up to rounding, and are the same for the same observation every time.

    Args:
        network: unchanged; the graph keeps its current weights.
        example: an observation with the arrays that are to be read, of any size: the more different its sizes, the better.
    """
    if not isinstance(network, Router) or network.spec.encoder == "pooled":
        return network
    names, arrays = tuple(example), tuple(example.values())
    graph = _trace(Positional(copy.deepcopy(network), names).eval(), arrays)
    with torch.inference_mode():
        for _ in range(_FIRST_CALLS):
            graph(*arrays)

    def scores(observation: Mapping[str, Tensor]) -> Tensor:
        return graph(*[observation[name] for name in names])

    return scores


def random_observation(observation: Observation, *, batch: int, experts: int, seed: int) -> dict[str, Tensor]:
    """An observation of a given size with random entries of order one; not a realistic one."""
    rng = np.random.default_rng(seed)
    expert = load_scenario("edge2").experts[0]
    view = view_of(allocate_rows(batch, [expert] * experts, observation))
    arrays: Mapping[str, Any] = {key: x for key, x in view._asdict().items() if x.size}
    drawn = {key: rng.random(x.shape, np.float32) for key, x in arrays.items()}
    for key in drawn:
        if key.endswith("_mask"):
            drawn[key] = (drawn[key] > 1 / 3).astype(np.float32)
    drawn["action_mask"][:, -1] = 1
    return {key: torch.from_numpy(x) for key, x in drawn.items()}


def _trace(module: nn.Module, example: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.compile, its successor, needs a C++ compiler where it runs
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # pyright: ignore[reportPrivateImportUsage]
        traced: Any = torch.jit.freeze(torch.jit.trace(module, example, check_trace=False))
    _tidy(traced.graph)
    return traced


def _tidy(graph: Any) -> None:
    """Take out what tracing leaves behind and running pays for, a third of a simple operation each time.

    Python's numbers became tensors of double precision or integers, converted at every use; they become what they are converted
    to, with one axis, as without one they would be numbers again. Slices that leave nothing out go.
    """
    for node in graph.findAllNodes("prim::Constant"):
        out = node.output()
        if out.type().kind() == "TensorType" and node.t("value").dim() == 0 and _scales_tensors(out):
            number = node.t("value").float().reshape(1)
            node.t_("value", number)
            out.inferTypeFrom(number)
    for node in graph.findAllNodes("aten::slice"):
        x, _, *bounds = node.inputs()
        if [bound.toIValue() for bound in bounds] == _TO_THE_END:
            node.output().replaceAllUsesWith(x)


def _scales_tensors(value: Any) -> bool:
    """Whether a number takes part in nothing but arithmetic whose results are no sizes: a trace computes these alike."""
    users = [use.user for use in value.uses()]
    return all(user.kind() in _ARITHMETIC and not _is_size(user.output()) for user in users)


def _is_size(value: Any) -> bool:
    users = [use.user for use in value.uses()]
    return any(user.kind() == "aten::Int" or (user.kind() in _ARITHMETIC and _is_size(user.output())) for user in users)
