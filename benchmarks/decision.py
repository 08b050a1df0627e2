"""Time of one decision of an exported router: from the arrays of an observation to the action, one cluster at a time.

Run ``OMP_NUM_THREADS=1 python -m benchmarks.decision`` from the repository root; it takes the extra ``onnx``. A router of the
default size with random weights is written as a bundle and loaded again; observations are random, with 16 + 8 slots. *bundle* is
what ``bundle_router`` returns, which evaluation runs: torch, traced and frozen. *ONNX Runtime* runs the bundle's graph, *eager
torch* the bundle's router as it is. Milliseconds of the one thread, median and 99th percentile over ``REPEATS`` decisions, of CPU
and by the clock, which also counts what other processes take; 6 experts and others in the table, CPU up to 256 experts in
``docs/figures/decision.png``. Expect the bundle to take a third of eager's time for few experts and ONNX Runtime half of that,
where the number of small operations decides; for hundreds they come together.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

from models.export.bundle import bundle_router, load_bundle, save_bundle
from models.export.onnx_scores import load_onnx
from models.export.traced import random_observation
from models.router import Router, RouterSpec
from rllib_envs.scenario import Observation
from rllib_envs.view import View

Arrays = dict[str, NDArray[np.float32]]
Decide = Callable[[Arrays], int]

OBSERVATION = Observation(whatif=True, calibrate=True)
EXPERTS = (2, 6, 16, 64, 256)
WARM_UP, REPEATS = 50, 1000
AIM_MS, AIM_EXPERTS = 0.5, 6  # 99th percentile
FIGURE = Path(__file__).parents[1] / "docs" / "figures" / "decision.png"


def eager(folder: Path) -> Decide:
    router = load_bundle(folder).router

    def decide(arrays: Arrays) -> int:
        with torch.inference_mode():
            return int(router({name: torch.from_numpy(x) for name, x in arrays.items()}).argmax())

    return decide


def bundle(folder: Path) -> Decide:
    route, observation = bundle_router(folder)
    simulation: Any = SimpleNamespace(scenario=SimpleNamespace(observation=observation))
    rng = np.random.default_rng(0)

    def decide(arrays: Arrays) -> int:
        simulation.view = View(**arrays)
        return int(route(simulation, rng)[0])

    return decide


def onnx(folder: Path) -> Decide:
    scores = load_onnx(folder)
    return lambda arrays: int(scores(arrays).argmax())


PATHS = {"eager torch": eager, "bundle (traced torch)": bundle, "ONNX Runtime": onnx}


def times_ms(decide: Decide, arrays: Arrays) -> NDArray[np.float64]:
    """Milliseconds of each of ``REPEATS`` decisions: of CPU, and by the clock."""
    for _ in range(WARM_UP):
        decide(arrays)
    stamps = np.zeros((REPEATS, 2, 2))
    for before, after in stamps:
        before[:] = time.thread_time(), time.perf_counter()
        decide(arrays)
        after[:] = time.thread_time(), time.perf_counter()
    return 1e3 * np.diff(stamps, axis=1)[:, 0]


def plot(times: dict[str, list[NDArray[np.float64]]]) -> Figure:
    """Time of a decision against the number of experts; ``times`` are (median, 99th percentile) for each number of them."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for (name, values), marker in zip(times.items(), "osD", strict=True):
        median, high = np.array(values).T
        (line,) = axes.plot(EXPERTS, median, label=name, marker=marker, markersize=5)
        axes.plot(EXPERTS, high, color=line.get_color(), linestyle=":", linewidth=1.2)
    axes.plot([], [], color="0.4", linestyle=":", linewidth=1.2, label="99th percentile")
    axes.plot(AIM_EXPERTS, AIM_MS, color="0.2", marker="_", markersize=22, linestyle="none", label="aim for the 99th percentile")
    axes.set(xscale="log", yscale="log", xlabel="experts", ylabel="CPU time of a decision, ms")
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
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(Path(folder) / "bundle", router, OBSERVATION, {}, onnx=True)
        decides = {name: make(Path(folder) / "bundle") for name, make in PATHS.items()}
    times: dict[str, list[NDArray[np.float64]]] = {name: [] for name in PATHS}
    print(f"{'N':>5}  {'path':22}{'CPU: p50':>10}{'p99':>8}{'clock: p50':>12}{'p99':>8}  ms")
    for n in EXPERTS:
        observation = random_observation(OBSERVATION, batch=1, experts=n, seed=n)
        arrays = {name: x.numpy() for name, x in observation.items()}
        assert len({decide(arrays) for decide in decides.values()}) == 1
        for name, decide in decides.items():
            (p50, clock_p50), (p99, clock_p99) = np.percentile(times_ms(decide, arrays), [50, 99], axis=0)
            times[name].append(np.array([p50, p99]))
            print(f"{n:5}  {name:22}{p50:10.3f}{p99:8.3f}{clock_p50:12.3f}{clock_p99:8.3f}")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    plot(times).savefig(FIGURE, dpi=120, metadata={"Software": None})
    print(f"wrote {FIGURE.relative_to(FIGURE.parents[2])}")


if __name__ == "__main__":
    main()
