"""Draws of arrivals: from a scenario's process, a user's own one, or the replay of a trace."""

from __future__ import annotations

import math

import numpy as np

from rllib_envs.errors import InputError
from rllib_envs.own_code import load_own, parse_own
from rllib_envs.scenario import Arrivals
from rllib_envs.workload.arrival_process import ArrivalBatch, ArrivalProcess, Times, arrival_process
from rllib_envs.workload.arrival_processes import PROCESSES
from rllib_envs.workload.replay import replay


def arrival_times(arrivals: Arrivals, rate_rps: float | None, n: int, rng: np.random.Generator) -> Times:
    """Arrival times (n,) of ``draw_arrivals``."""
    return draw_arrivals(arrivals, rate_rps, n, rng).arrival_s


def draw_arrivals(arrivals: Arrivals, rate_rps: float | None, n: int, rng: np.random.Generator) -> ArrivalBatch:
    """Draw n arrivals; a replayed trace with fewer requests gives all of them.

    ``rate_rps`` is the long-run mean rate, requests/s; None is a trace's own. The azure processes and a replayed trace reach
    another rate by a change of the time scale, which keeps their burstiness in requests. So the replayed rows arrive at that
    rate, whatever the rate of the file. ``cycle_s`` and ``period_s`` of mmpp and diurnal are real time at any rate. A replay of
    fewer requests than its window has starts at a uniformly random one of them. A replay of all starts with the window. It draws
    only the offsets within ticks of a trace whose times are quantised (``TraceFile.jitter``). Prompt tokens, and output tokens
    for ``lengths: trace``, come with the azure processes and with a trace that has them.

    Raises:
        InputError: no rate for a process without its own one, a rate or n that is not positive, or a figure that the process
            refuses. A trace that cannot be read, or that has no rate to rescale. A user's function that cannot be loaded, or
            does not return n ascending times.
    """
    if n < 1:
        raise InputError(f"n = {n}: an episode has at least 1 arrival")
    if rate_rps is not None and not 0 < rate_rps < math.inf:
        raise InputError(f"rate_rps = {rate_rps}: must be a positive number of requests per second")
    if arrivals.trace is not None:
        return replay(arrivals, rate_rps, n, rng)
    process = process_of(arrivals.kind)
    rate = process.own_rate_rps if rate_rps is None else rate_rps
    if rate is None:
        raise InputError(f"rate_rps = None with arrivals.kind = {arrivals.kind!r}: only a trace has a rate of its own")
    unknown = [name for name, _ in arrivals.parameters if name not in process.parameters]
    if unknown:
        raise InputError(f"arrivals.kind = {arrivals.kind!r}: takes no parameter {unknown[0]!r}")
    batch = process(rate, n, rng, **{name: getattr(arrivals, name) for name in process.fields}, **dict(arrivals.parameters))
    if arrivals.is_own:
        _check_times(batch.arrival_s, n, arrivals.kind)
    return batch


def process_of(kind: str) -> ArrivalProcess:
    """The process of that name, or a user's function, whose file is run.

    Raises:
        InputError: a user's function cannot be loaded, or does not take a process's arguments.
    """
    if kind in PROCESSES:
        return PROCESSES[kind]
    what = "arrivals"
    function = load_own(parse_own(kind, what), what)
    try:
        process = arrival_process()(function)
    except TypeError as error:
        raise InputError(f"{what} {kind!r}: {error}") from None
    if process.fields:
        raise InputError(f"{what} {kind!r}: {process.fields[0]} must have a default")
    return process


def _check_times(times: object, n: int, kind: str) -> None:
    """Refuse values that the simulator would mistake for times."""
    given = np.asarray(times)
    if given.shape != (n,) or given.dtype != np.float64:
        raise InputError(f"arrivals {kind!r}: returned {given.dtype} of shape {given.shape}: must be float64 of shape ({n},)")
    if not (np.isfinite(given).all() and given[0] >= 0 and (np.diff(given) >= 0).all()):
        raise InputError(f"arrivals {kind!r}: returned times that are not all finite, >= 0 and ascending")
