"""Train a router for two minutes and compare it with the heuristics, on Poisson arrivals and on the Azure conversation trace.

It shows the whole path once. RLlib trains in the simulator, then the checkpoint meets every heuristic on the same requests, and
the command writes tables and figures. On edge6 the shipped router, which was trained for longer, takes part too. It takes about
five minutes.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tuning import evaluate, train
from tuning.specs.grammar import check_limits
from tuning.specs.routers import SHIPPED_ROUTER
from tuning.specs.workloads import TraceOptions

_ROOT = Path(__file__).resolve().parents[1]
_TRACE = Path("azure_llm_2023") / "AzureLLMInferenceTrace_conv.csv.gz"
_SEEDS, _REQUESTS = 6, 1000
_SHIPPED = "edge6"
_PREDICTIONS = "oracle-noise"  # what the shipped router was trained with, and the shipped parameters of heuristics tuned with


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    scenario: str = "edge6"
    """Scenario: a preset (edge6, edge6-sites, paper3, balance13, edgeN with N from 2 to 256) or a YAML file."""
    minutes: float = 2.0
    """Training time."""
    trace: Path | None = None
    """Trace to replay (docs/data.md). Default: the Azure conversation trace in the folder EDGEROUTE_DATA, or in
    ../shared/data beside the project (docs/data.md); where there is none, arrivals of the same shape, from the built-in fit."""
    out: Path = Path("runs/demo")
    """Folder for the run and the results. What an earlier demo left there is replaced."""
    smoke: bool = False
    """A tiny run that takes seconds."""


def run(options: Options) -> int:
    """Train, evaluate twice, say where everything is.

    Returns:
        0; 130 if training was interrupted.

    Raises:
        InputError: the scenario or the trace cannot be read.
    """
    check_limits("minutes", options.minutes, 1e-3, 1e7)
    training, poisson, azure = (options.out / name for name in ("train", "poisson", "azure"))
    print(f"1. Training a router for {options.minutes:g} min (AVL, {options.scenario}, loads from light to heavy, faults)\n")
    shutil.rmtree(training, ignore_errors=True)
    minutes = None if options.smoke else options.minutes
    code = train.run(
        train.Options(
            scenario=options.scenario,
            run_dir=training,
            minutes=minutes,
            smoke=options.smoke,
            fleets=(),
            envs_per_runner=64,
            steps_per_iteration=8192,  # iterations of seconds: one sees it learn
            predictions=_PREDICTIONS,
            validate_every=0,
        )
    )
    if code:
        return code
    print("\n2. Poisson arrivals\n")
    _compare(options, training, poisson, load=("moderate", "heavy"), arrivals=("poisson",))
    trace = _trace(options.trace)
    if trace is None:
        print("\n3. Arrivals of the Azure conversation trace's shape: the built-in fit (the file itself was not found)\n")
        _compare(options, training, azure, load=("moderate",), arrivals=("azure-conversation",))
    else:
        print(f"\n3. The Azure conversation trace itself: {trace}, its time scale changed to the load\n")
        _compare(options, training, azure, load=("moderate",), trace=TraceOptions(trace=trace))
    print(f"\nThe report: {poisson / 'results.md'} and {azure / 'results.md'}; learning curve: {training / 'training.png'}")
    return 0


def _compare(
    options: Options,
    training: Path,
    out: Path,
    *,
    load: tuple[str, ...],
    arrivals: tuple[str, ...] = (),
    trace: TraceOptions | None = None,
) -> None:
    shipped = (f"bundle:{SHIPPED_ROUTER}",) if options.scenario == _SHIPPED else ()
    evaluate.run(
        evaluate.Options(
            scenario=options.scenario,
            load=load,
            arrivals=arrivals,
            trace=trace or TraceOptions(),
            routers=("all", f"checkpoint:{training}", *shipped),
            predictions=_PREDICTIONS,
            seeds=_SEEDS,
            requests=_REQUESTS,
            out=out,
            smoke=options.smoke,
        )
    )


def _trace(given: Path | None) -> Path | None:
    """The trace to replay: the given one, or the Azure file where the public data files are."""
    if given is not None:
        return given
    found = Path(os.environ.get("EDGEROUTE_DATA", _ROOT.parent / "shared" / "data")) / _TRACE
    return found if found.is_file() else None
