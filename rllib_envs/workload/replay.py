"""The replay of a recorded trace."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rllib_envs.errors import InputError
from rllib_envs.scenario import DEFAULT_REQUESTS, Arrivals, Workload
from rllib_envs.workload.arrival_process import ArrivalBatch
from rllib_envs.workload.lengths import GivenLengths, given_lengths
from rllib_envs.workload.ticks import spread
from rllib_envs.workload.traces import Trace, cached_trace


def replay(arrivals: Arrivals, rate_rps: float | None, n: int, rng: np.random.Generator) -> ArrivalBatch:
    """N consecutive requests of a trace's window, from a random one on, or all requests of the window (see ``draw_arrivals``).

    Raises:
        InputError: the trace cannot be read, or has no rate to rescale.
    """
    trace, whole = _trace(arrivals), recorded(arrivals)
    times, prompt, lengths, classes = whole.arrival_s, whole.prompt_tokens, whole.lengths, whole.classes
    partly = n < times.size
    if partly:
        first = int(rng.integers(times.size - n + 1))
        times = times[first : first + n]
        prompt = None if prompt is None else prompt[first : first + n]
        lengths = None if lengths is None else lengths.at(np.arange(first, first + n))
        classes = None if classes is None else classes.at(slice(first, first + n))
    if trace.tick_s is not None:
        times = spread(times, trace.tick_s, rng)
    if partly:
        times = times - times[0]
    if rate_rps is not None:
        times = times * _stretch(times, trace, rate_rps)
    prompt = None if prompt is None else prompt.copy()
    return ArrivalBatch(arrival_s=times.copy(), prompt_tokens=prompt, lengths=lengths, classes=classes)


def _stretch(times: NDArray[np.float64], trace: Trace, rate_rps: float) -> float:
    """Factor that rescales the times: by the reciprocal of their mean gap, or of the window's if they are all the same."""
    span_s = float(times[-1] - times[0])
    own_rps = (times.size - 1) / span_s if span_s > 0 else trace.rate_rps
    if math.isnan(own_rps):
        raise InputError(f"{trace.source}: all requests of the window come at once: no rate to rescale to rate_rps = {rate_rps}")
    return own_rps / rate_rps


def recorded(arrivals: Arrivals) -> ArrivalBatch:
    """All requests of a replayed trace's window, at their own times; the arrays are shared and read-only.

    Raises:
        InputError: the trace cannot be read.
    """
    trace = _trace(arrivals)
    lengths = None if trace.output_tokens is None or arrivals.lengths == "catalogue" else _lengths(trace)
    return ArrivalBatch(arrival_s=trace.arrival_s, prompt_tokens=trace.prompt_tokens, lengths=lengths, classes=trace.classes)


def episode_requests(workload: Workload) -> int:
    """Requests in an episode.

    Raises:
        InputError: a trace cannot be read.
    """
    if workload.arrivals.trace is None:
        return workload.requests or DEFAULT_REQUESTS
    rows = cached_trace(workload.arrivals.trace).arrival_s.size
    return min(workload.requests or rows, rows)


def _trace(arrivals: Arrivals) -> Trace:
    if arrivals.trace is None:  # Arrivals refuses this; stated for the type checker
        raise InputError("arrivals.trace = None: kind 'trace' replays a trace")
    return cached_trace(arrivals.trace)


@lru_cache(maxsize=8)
def _lengths(trace: Trace) -> GivenLengths:
    if trace.output_tokens is None:
        raise ValueError(f"{trace.source}: has no output tokens")
    return given_lengths(trace.output_tokens)
