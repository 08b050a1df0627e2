"""Build workloads from names on the command line: loads, arrival processes, traces, catalogues and faults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tyro
from pydantic import ValidationError

from rllib_envs.capacity import capacity_rps
from rllib_envs.errors import InputError
from rllib_envs.own_code import PREFIX, parse_own
from rllib_envs.scenario import LOAD_FRACTIONS, Arrivals, Scenario, TraceFile, with_workload
from rllib_envs.workload.arrival_processes import PROCESSES
from rllib_envs.workload.arrivals import process_of
from tuning.specs.faults import NO_FAULT, parse_faults, with_fault
from tuning.specs.grammar import format_spec, parse_spec

_NUMBERS: dict[str, Sequence[str]] = {kind: process.numbers for kind, process in PROCESSES.items()}
_NAMED_LOADS = (*LOAD_FRACTIONS, "mixed", "native")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOptions:
    """A recorded trace to replay."""

    trace: Path | None = None
    """Trace file to replay, plain or gzip. It keeps its own rate; if you give a load, its time scale changes."""
    trace_format: Literal["auto", "azure", "mooncake", "burstgpt", "csv"] = "auto"
    """Format of the trace. auto: known by its columns, or csv if you name columns."""
    trace_time_column: str = "timestamp"
    """Format csv: column of the arrival time, in seconds or ISO 8601."""
    trace_prompt_column: str | None = None
    """Format csv: column of the prompt tokens."""
    trace_output_column: str | None = None
    """Format csv: column of the output tokens."""
    trace_class_column: str | None = None
    """Format csv: column with the name of each request's service class. Default: classes are drawn by their shares."""
    trace_start_s: float = 0.0
    """Start of the window to replay, in seconds from the trace's first request."""
    trace_duration_s: float | None = None
    """Length of that window in seconds. Default: to the end of the trace."""
    trace_jitter: tyro.conf.DisallowNone[bool | None] = None
    """Spread each arrival uniformly within the trace's time tick. Default: on if its times are quantised (Mooncake: 3 s)."""
    trace_lengths: Literal["trace", "catalogue"] | None = None
    """Output lengths of a trace and of the Azure arrivals: the trace's, where it has them, or the catalogue's. Default: the
    scenario's choice, which is the trace's unless it says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedWorkload:
    """A scenario under one arrival process and load, with or without a fault."""

    arrivals: str
    load: str
    fault: str  # a name of ``tuning.specs.faults``
    scenario: Scenario  # with capacity_rps measured, so that no other process needs to
    rate_rps: float | None  # nominal; None where an episode or a trace has its own

    @property
    def name(self) -> str:
        """ARRIVALS at LOAD, as given, and the fault."""
        return self.clean_name if self.fault == NO_FAULT else f"{self.clean_name} with {self.fault}"

    @property
    def clean_name(self) -> str:
        """The name of the same workload without the fault."""
        return f"{self.arrivals} at {self.load}"

    @property
    def share_of_capacity(self) -> float | None:
        """The nominal rate as a share of the capacity for these arrivals."""
        return None if self.rate_rps is None else self.rate_rps / capacity_rps(self.scenario)


def make_workloads(
    scenario: Scenario,
    loads: Sequence[str],
    arrivals: Sequence[str],
    trace: TraceOptions,
    requests: int | None,
    faults: Sequence[str] = (),
) -> list[NamedWorkload]:
    """Cross every arrival process, load and fault; the scenario's own if none is given.

    Raises:
        InputError: unknown load, process or fault, impossible parameters, no such trace.
    """
    world = scenario if requests is None else _changed(scenario, f"requests = {requests}", requests=requests)
    usual = world.workload.arrivals
    if trace.trace_lengths is not None:
        usual = replace(usual, lengths=trace.trace_lengths)
    replay = () if trace.trace is None else (_trace_arrivals(trace, usual.lengths),)
    own = () if arrivals or replay else (usual,)
    processes = (*own, *(_parse_arrivals(text, usual) for text in arrivals), *replay)
    whole = _changed(world, "a trace", requests=requests)  # the scenario's number is of its own arrivals
    made = [
        _make(whole if process in replay else world, process, load)
        for process in processes
        for load in loads or ("native" if process in replay else _load_name(world.workload.load),)
    ]
    faulty = [
        replace(workload, fault=fault, scenario=with_fault(workload.scenario, fault))
        for workload in made
        for fault in parse_faults(faults)
    ]
    return list({workload.name: workload for workload in (faulty if faults else made)}.values())


def is_process(text: str) -> bool:
    """Whether a workload's ``arrivals`` names a built-in process, which needs no other file, unlike a trace.

    A user's own process does not count: such names are also read from files, which must not run code.
    """
    return text.partition(":")[0] in PROCESSES


def _make(world: Scenario, process: Arrivals, load: str) -> NamedWorkload:
    what = f"arrivals {_arrivals_name(process)!r} at load {load!r}"
    scenario = _changed(world, what, arrivals=process, load=1.0)  # a process that brings its own prompts has its own capacity
    capacity = capacity_rps(scenario)
    scenario = _changed(replace(scenario, capacity_rps=capacity), what, load=_parse_load(load, capacity))
    return NamedWorkload(
        arrivals=_arrivals_name(process),
        load=load,
        fault=NO_FAULT,
        scenario=scenario,
        rate_rps=_nominal_rate_rps(scenario),
    )


def _parse_load(text: str, capacity: float) -> float | str:
    """A named load as it is; ``70%`` of the capacity and a plain number as requests/s."""
    if text in _NAMED_LOADS:
        return text
    number, percent = (text[:-1], True) if text.endswith("%") else (text, False)
    try:
        value = float(number)
    except ValueError:
        allowed = f"requests/s, a share of the capacity (70%), {', '.join(_NAMED_LOADS)}"
        raise InputError(f"load {text!r}: allowed are {allowed}") from None
    if not 0 < value < float("inf"):
        raise InputError(f"load {text!r}: must be positive")
    return value / 100 * capacity if percent else value


def _load_name(load: float | str) -> str:
    return load if isinstance(load, str) else repr(load)


def _nominal_rate_rps(scenario: Scenario) -> float | None:
    load = scenario.workload.load
    if isinstance(load, str):
        return LOAD_FRACTIONS[load] * capacity_rps(scenario) if load in LOAD_FRACTIONS else None
    return load


def _parse_arrivals(text: str, usual: Arrivals) -> Arrivals:
    """An arrival process; parameters that are not given are the scenario's."""
    if text.startswith(PREFIX):
        own = parse_own(text, "arrivals")
        typed = own.function if own.rest is None else f"{own.function}:{own.rest}"
        kind, known = own.text, {own.function: process_of(own.text).numbers}
        values = parse_spec(typed, "arrivals", known, given=text)[1]
    else:
        kind, values = parse_spec(text, "arrivals", _NUMBERS)
    fields = () if text.startswith(PREFIX) else PROCESSES[kind].fields
    named = {name: value for name, value in values.items() if name in fields}
    rest = {name: value for name, value in values.items() if name not in fields}
    try:
        return replace(usual, kind=kind, trace=None, **named, parameters=tuple(sorted(rest.items())))
    except ValidationError as error:
        raise InputError(_explain(f"arrivals {text!r}", error)) from None


def _arrivals_name(process: Arrivals) -> str:
    """Its kind, with the parameters that are not the usual ones."""
    if process.trace is not None:
        start_s, duration_s = process.trace.start_s, process.trace.duration_s
        start = f" from {start_s:g} s" if start_s else ""
        return f"trace {Path(process.trace.path).name}{start}" + ("" if duration_s is None else f" for {duration_s:g} s")
    usual = Arrivals(kind=process.kind)
    fields = () if process.is_own else PROCESSES[process.kind].fields
    keys = [key for key in fields if key != "lengths" and getattr(process, key) != getattr(usual, key)]
    return format_spec(process.kind, {key: getattr(process, key) for key in keys} | dict(process.parameters))


def _trace_arrivals(options: TraceOptions, lengths: Literal["trace", "catalogue"]) -> Arrivals:
    names = ("format", "time_column", "prompt_column", "output_column", "class_column", "start_s", "duration_s", "jitter")
    try:
        file = TraceFile(path=str(options.trace), **{name: getattr(options, f"trace_{name}") for name in names})
    except ValidationError as error:
        raise InputError(_explain(f"trace {str(options.trace)!r}", error)) from None
    return Arrivals(kind="trace", trace=file, lengths=lengths)


def _changed(scenario: Scenario, what: str, **changes: Any) -> Scenario:
    try:
        return with_workload(scenario, **changes)
    except ValidationError as error:
        raise InputError(_explain(what, error)) from None


def _explain(what: str, error: ValidationError) -> str:
    return "\n".join(f"{what}: {'.'.join(map(str, e['loc']))}{': ' if e['loc'] else ''}{e['msg']}" for e in error.errors())
