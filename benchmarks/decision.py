"""Time of one decision of a router: from the arrays of an observation to the action, one cluster at a time.

Run ``OMP_NUM_THREADS=1 python -m benchmarks.decision`` from the repository root; it takes the extra ``onnx``. A router of the
default size with random weights on random observations with 16 + 8 slots, conversion of the arrays included: torch as it is
(eager), traced and frozen, which folds what depends on weights alone, and ONNX Runtime. Milliseconds of CPU of the one thread,
median and 99th percentile over ``REPEATS`` decisions; 6 experts in the table, up to 256 in ``docs/figures/decision.png``. Expect
traced torch to take a third of eager's time and ONNX Runtime half of that for few experts, where the number of small operations
decides; for hundreds they come together.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray
from torch import Tensor

from models.onnx_export import ONNX_FILE, export_onnx, random_observation
from models.router import Router, RouterSpec
from rllib_envs.scenario import Observation

Arrays = dict[str, NDArray[np.float32]]
Decide = Callable[[Arrays], int]

OBSERVATION = Observation(whatif=True, calibrate=True)
EXPERTS = (2, 6, 16, 64, 256)
WARM_UP, REPEATS = 50, 500
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "decision.png"


def eager(router: Router) -> Decide:
    def decide(arrays: Arrays) -> int:
        with torch.inference_mode():
            return int(router({name: torch.from_numpy(x) for name, x in arrays.items()}).argmax())

    return decide


class Positional(torch.nn.Module):
    """The router with its arrays as arguments: what is traced has no dictionaries."""

    def __init__(self, router: Router, names: list[str]) -> None:
        super().__init__()
        self.router, self.names = router, names

    def forward(self, *arrays: Tensor) -> Tensor:
        return self.router(dict(zip(self.names, arrays, strict=True)))


def traced(router: Router) -> Decide:
    example = random_observation(OBSERVATION, batch=2, experts=3, seed=0)
    names = list(example)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch's own; torch.compile needs a C++ compiler where it runs
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        graph = torch.jit.freeze(torch.jit.trace(Positional(router, names).eval(), tuple(example.values()), check_trace=False))

    def decide(arrays: Arrays) -> int:
        with torch.inference_mode():
            return int(graph(*(torch.from_numpy(arrays[name]) for name in names)).argmax())

    return decide


def onnx(router: Router) -> Decide:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(Path(folder), router, OBSERVATION)
        path = Path(folder) / ONNX_FILE
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def decide(arrays: Arrays) -> int:
        (scores,) = session.run(["scores"], arrays)
        return int(np.asarray(scores).argmax())

    return decide


PATHS = {"eager torch": eager, "traced torch": traced, "ONNX Runtime": onnx}


def times_ms(decide: Decide, arrays: Arrays) -> NDArray[np.float64]:
    """CPU milliseconds of each of ``REPEATS`` decisions."""
    for _ in range(WARM_UP):
        decide(arrays)
    stamps = np.zeros((REPEATS, 2))
    for row in stamps:
        row[0] = time.thread_time()
        decide(arrays)
        row[1] = time.thread_time()
    return 1e3 * np.diff(stamps)[:, 0]


def plot(median_ms: dict[str, list[float]]) -> Figure:
    """Time of a decision against the number of experts."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, values), marker in zip(median_ms.items(), "osD", strict=True):
        axes.plot(EXPERTS, values, label=name, marker=marker, markersize=5)
    axes.set(xscale="log", yscale="log", xlabel="experts", ylabel="CPU time of a decision, median, ms")
    axes.set_xticks(EXPERTS, [str(n) for n in EXPERTS])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    """Print the table and write the figure."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    router = Router(RouterSpec()).eval()
    for parameter in router.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    decides = {name: make(router) for name, make in PATHS.items()}
    median_ms: dict[str, list[float]] = {name: [] for name in PATHS}
    print(f"{'N':>5}  {'path':14}{'p50 ms':>9}{'p99 ms':>9}")
    for n in EXPERTS:
        observation = random_observation(OBSERVATION, batch=1, experts=n, seed=n)
        arrays = {name: x.numpy() for name, x in observation.items()}
        assert len({decide(arrays) for decide in decides.values()}) == 1
        for name, decide in decides.items():
            p50, p99 = np.percentile(times_ms(decide, arrays), [50, 99])
            median_ms[name].append(float(p50))
            print(f"{n:5}  {name:14}{p50:9.3f}{p99:9.3f}")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    plot(median_ms).savefig(FIGURE, dpi=120, metadata={"Software": None})
    print(f"wrote {FIGURE}")


if __name__ == "__main__":
    main()
