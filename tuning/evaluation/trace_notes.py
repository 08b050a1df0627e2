"""Notes on a replayed trace: rows that were left out, and arrivals that differ from the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rllib_envs.scenario import Scenario, TraceFile
from rllib_envs.workload.traces import EMPTY, FAILED, cached_trace
from tuning.specs.workloads import NamedWorkload

_REASONS = {FAILED: "failed (0 output tokens)", EMPTY: "empty (0 prompt tokens)"}


def notes_on_traces(workloads: Sequence[NamedWorkload]) -> list[str]:
    """Write a sentence for each difference between the replay and the file.

    Raises:
        InputError: a trace cannot be read.
    """
    files = dict.fromkeys(w.scenario.workload.arrivals.trace for w in workloads)
    return [note for file in files if file is not None for note in _notes(file)]


def trace_json(scenario: Scenario) -> dict[str, Any] | None:
    """Counts of what was read of the scenario's trace; None if it replays none.

    Raises:
        InputError: the trace cannot be read.
    """
    file = scenario.workload.arrivals.trace
    if file is None:
        return None
    trace = cached_trace(file)
    return {
        "path": trace.source,
        "format": trace.format,
        "requests": trace.arrival_s.size,
        "skipped": dict(trace.skipped),
        "tick_s": trace.tick_s,
    }


def _notes(file: TraceFile) -> list[str]:
    trace = cached_trace(file)
    name = f"Trace {Path(file.path).name} ({trace.format})"
    rows = trace.arrival_s.size + sum(trace.skipped.values())
    notes = [
        f"{name}: {count:,} of {rows:,} rows were left out as {_REASONS[reason]}."
        for reason, count in trace.skipped.items()
        if count
    ]
    if trace.tick_s is not None:
        notes.append(
            f"{name}: its clock ticks every {trace.tick_s:.3g} s; arrivals are spread uniformly within each tick "
            "(--no-trace-jitter leaves them as they are)."
        )
    return notes
