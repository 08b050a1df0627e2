"""When requests arrive: Poisson, Gamma, Markov-modulated, diurnal, fits of the Azure traces, and replay of a trace.

Everything is drawn in whole arrays from the generator passed in: the same generator state gives the same bits.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.errors import InputError
from rllib_envs.scenario import Arrivals
from rllib_envs.workload.azure import AzureKind, azure_lengths, azure_prompt_tokens
from rllib_envs.workload.replay import ArrivalBatch, replay

AZURE_RATE_RPS: dict[AzureKind, float] = {"azure-conversation": 5.530, "azure-code": 2.567}
"""Mean rates of the Azure LLM inference traces of 2023 (one hour each; 19,366 and 8,819 requests), requests/s."""

# Conversation: Gamma gaps times a log-normal pace that wanders from request to request. Fitted by simulated moments: over 100
# simulated hours the mean index of dispersion of counts is 1.39 and 16.3 in windows of 1 s and 60 s (trace: 1.39, 16.1).
_CONVERSATION_GAP_CV = 1.06  # of the gaps at constant pace, as of the trace's gaps in random order
_CONVERSATION_PACE_LOG_SD = 0.24
_CONVERSATION_PACE_MEMORY = 2000.0  # requests, about six minutes: where the autocorrelation has fallen to 1/e


class _Regime(NamedTuple):
    """Gaps of the code trace in one regime: within a batch sent at once, paced, or a pause between sessions."""

    batch_share: float  # of the gaps
    paced_log_mean: float  # log of seconds; paced gaps are log-normal
    paced_log_sd: float
    pause_share: float  # of the gaps


# Code: calm stretches with pauses, and floods of about 100 requests at 25/s. Shares and runs come from a hidden Markov model of
# the trace's gaps, gap laws from moments of its gaps below 10 ms (batch), up to 1 s (paced) and above (pause); then the floods
# were adjusted by simulated moments (gap CV, busiest second, index of dispersion in windows of 0.1 s to 120 s). Medians of 200
# simulated hours: gap CV 12.9 (trace 13.2), busiest second 60 requests (67), index of dispersion 12.5 in 1 s (13.2), 142 in
# 60 s (164); each figure of the trace lies between the 5 % and 95 % quantiles of those hours.
_CODE_FLOOD_SHARE = 0.15  # of the requests
_CODE_FLOOD_RUN = 100.0  # requests, mean
_CODE_REGIMES = (
    _Regime(batch_share=0.36, paced_log_mean=-2.08, paced_log_sd=0.78, pause_share=0.016 / (1 - _CODE_FLOOD_SHARE)),
    _Regime(batch_share=0.55, paced_log_mean=-3.15, paced_log_sd=0.30, pause_share=0.0),
)
_CODE_BATCH_LOG_MEAN, _CODE_BATCH_LOG_SD = -6.8, 1.4  # log of seconds
_CODE_PAUSE_MIN_S, _CODE_PAUSE_SHAPE, _CODE_PAUSE_SCALE_S = 1.0, 0.22, 81.0  # minimum + Gamma

_MIN_CYCLE_ARRIVALS = 0.1  # keeps the work of mmpp in proportion to the arrivals
_DAY_STEPS = 4096  # the diurnal curve's integral is exact at so many points of a day, linear between them


def arrival_times(arrivals: Arrivals, rate_rps: float | None, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Arrival times (n,) of ``draw_arrivals``, which see."""
    return draw_arrivals(arrivals, rate_rps, n, rng).arrival_s


def draw_arrivals(arrivals: Arrivals, rate_rps: float | None, n: int, rng: np.random.Generator) -> ArrivalBatch:
    """Draw n arrivals; a replayed trace gives all where it has no more.

    ``rate_rps`` is the long-run mean rate, requests/s; None is a trace's own. The azure processes and a replayed trace reach
    another rate by a change of the time scale, so that their burstiness in requests stays: the rows that are replayed come at
    that rate, whatever the rate of the file. ``cycle_s`` and ``period_s`` of mmpp and diurnal are real time whatever the rate.
    mmpp starts in its stationary law, diurnal at a uniformly random time of day, a replay of fewer requests than its window has
    at a uniformly random one of them. A replay of all starts with the window, and draws nothing but the offsets within ticks of
    a trace whose times are quantised (``TraceFile.jitter``). Prompt tokens, and output tokens for ``lengths: trace``, come with
    the azure processes (drawn independently of the times: in the traces the correlation of prompts with their neighbours is
    below 0.03) and with a trace that has them.

    Raises:
        InputError: no rate for a process without one of its own, a rate or n that is not positive, a ``cv`` outside 0.01 to 100,
            a ``cycle_s`` or ``period_s`` below 0.1 / rate, a trace that cannot be read, or one that has no rate to be rescaled.
    """
    if n < 1:
        raise InputError(f"n = {n}: an episode has at least 1 arrival")
    if rate_rps is not None and not 0 < rate_rps < math.inf:
        raise InputError(f"rate_rps = {rate_rps}: must be a positive number of requests per second")
    if arrivals.kind == "trace":
        return replay(arrivals, rate_rps, n, rng)
    if arrivals.kind == "azure-conversation" or arrivals.kind == "azure-code":
        rate = AZURE_RATE_RPS[arrivals.kind] if rate_rps is None else rate_rps
        gaps = _conversation_gaps(n, rng) if arrivals.kind == "azure-conversation" else _code_gaps(n, rng)
        prompt = azure_prompt_tokens(arrivals.kind, n, rng)
        lengths = azure_lengths(arrivals.kind, prompt, rng) if arrivals.lengths == "trace" else None
        return ArrivalBatch(arrival_s=np.cumsum(gaps) / rate, prompt_tokens=prompt, lengths=lengths)
    if rate_rps is None:
        raise InputError(f"rate_rps = None with arrivals.kind = {arrivals.kind!r}: only a trace has a rate of its own")
    return ArrivalBatch(arrival_s=_synthetic_times(arrivals, rate_rps, n, rng), prompt_tokens=None)


def _synthetic_times(arrivals: Arrivals, rate_rps: float, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    if arrivals.kind == "gamma":
        if not 0.01 <= arrivals.cv <= 100:
            raise InputError(f"arrivals.cv = {arrivals.cv}: must be from 0.01 to 100")
        shape = arrivals.cv**-2
        return np.cumsum(rng.standard_gamma(shape, n)) / (shape * rate_rps)
    work = np.cumsum(rng.standard_exponential(n))  # arrival times of a Poisson process of rate 1
    if arrivals.kind == "mmpp":
        return _mmpp_times(arrivals, rate_rps, work, rng)
    if arrivals.kind == "diurnal":
        return _diurnal_times(arrivals, rate_rps, work, rng)
    return work / rate_rps


def _mmpp_times(arrivals: Arrivals, rate_rps: float, work: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Times at which the integral of the modulated rate reaches ``work``."""
    share, ratio, cycle_s = arrivals.burst_share, arrivals.burst_ratio, arrivals.cycle_s
    _require_slower_than_gaps("cycle_s", cycle_s, rate_rps)
    quiet_rps = rate_rps / (1 - share + share * ratio)
    starts_in_burst = bool(rng.random() < share)
    sojourn_s = np.array([(1 - share) * cycle_s, share * cycle_s])
    rates = np.array([quiet_rps, quiet_rps * ratio])
    order = [1, 0] if starts_in_burst else [0, 1]
    cycles = int(work[-1] / (rate_rps * cycle_s)) + 16
    time_s = change = np.zeros(1)  # instants of switching, and the integral of the rate up to them
    while change[-1] <= work[-1]:
        stays = rng.standard_exponential((cycles, 2)) * sojourn_s[order]
        time_s = np.concatenate([time_s, time_s[-1] + np.cumsum(stays)])
        change = np.concatenate([change, change[-1] + np.cumsum(stays * rates[order])])
    return np.interp(work, change, time_s)


def _require_slower_than_gaps(field: str, length_s: float, rate_rps: float) -> None:
    if length_s * rate_rps < _MIN_CYCLE_ARRIVALS:
        raise InputError(
            f"arrivals.{field} = {length_s} at rate_rps = {rate_rps}: must be at least {_MIN_CYCLE_ARRIVALS} / rate_rps; "
            "arrivals cannot follow a faster change: use kind 'poisson'"
        )


def _diurnal_times(
    arrivals: Arrivals, rate_rps: float, work: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Times at which the integral of ``rate * (1 + amplitude * sin(2 pi (t + offset) / period))`` reaches ``work``."""
    _require_slower_than_gaps("period_s", arrivals.period_s, rate_rps)
    day = np.linspace(0.0, 1.0, _DAY_STEPS + 1)
    integral = day + arrivals.amplitude * (1 - np.cos(2 * np.pi * day)) / (2 * np.pi)  # in days' work; 1 at the end of a day
    offset = rng.random()  # time of day at the start, in days
    done = work / (rate_rps * arrivals.period_s) + np.interp(offset, day, integral)
    days = np.floor(done)
    return np.maximum(days + np.interp(done - days, integral, day) - offset, 0.0) * arrivals.period_s


def _conversation_gaps(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Gaps (n,) of mean 1."""
    from scipy.signal import lfilter  # here: importing it takes a second, and other processes do without

    keep = math.exp(-1 / _CONVERSATION_PACE_MEMORY)
    shocks = rng.standard_normal(n)
    shocks[1:] *= math.sqrt(1 - keep**2)  # the first is drawn from the stationary law
    wander = np.asarray(lfilter([1.0], [1.0, -keep], shocks))
    pace = np.exp(_CONVERSATION_PACE_LOG_SD * wander - _CONVERSATION_PACE_LOG_SD**2 / 2)  # mean 1
    shape = _CONVERSATION_GAP_CV**-2
    return rng.standard_gamma(shape, n) / shape * pace


def _code_gaps(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Gaps (n,) of mean 1. The regime is drawn anew at random requests, which makes it a stationary two-state Markov chain."""
    anew = rng.random(n) * _CODE_FLOOD_RUN * (1 - _CODE_FLOOD_SHARE) < 1
    last_anew = np.maximum.accumulate(np.where(anew, np.arange(n), 0))
    flood = (rng.random(n) < _CODE_FLOOD_SHARE)[last_anew]
    calm_regime, flood_regime = _CODE_REGIMES
    kind = rng.random(n)
    batch = kind < np.where(flood, flood_regime.batch_share, calm_regime.batch_share)
    pause = np.flatnonzero(kind >= 1 - np.where(flood, flood_regime.pause_share, calm_regime.pause_share))
    log_mean = np.where(batch, _CODE_BATCH_LOG_MEAN, np.where(flood, flood_regime.paced_log_mean, calm_regime.paced_log_mean))
    log_sd = np.where(batch, _CODE_BATCH_LOG_SD, np.where(flood, flood_regime.paced_log_sd, calm_regime.paced_log_sd))
    gaps_s = np.exp(log_mean + log_sd * rng.standard_normal(n))
    gaps_s[pause] = _CODE_PAUSE_MIN_S + _CODE_PAUSE_SCALE_S * rng.standard_gamma(_CODE_PAUSE_SHAPE, len(pause))
    mean_s = (1 - _CODE_FLOOD_SHARE) * _mean_gap_s(calm_regime) + _CODE_FLOOD_SHARE * _mean_gap_s(flood_regime)
    return gaps_s / mean_s


def _mean_gap_s(regime: _Regime) -> float:
    batch_s = math.exp(_CODE_BATCH_LOG_MEAN + _CODE_BATCH_LOG_SD**2 / 2)
    paced_s = math.exp(regime.paced_log_mean + regime.paced_log_sd**2 / 2)
    pause_s = _CODE_PAUSE_MIN_S + _CODE_PAUSE_SHAPE * _CODE_PAUSE_SCALE_S
    paced_share = 1 - regime.batch_share - regime.pause_share
    return regime.batch_share * batch_s + paced_share * paced_s + regime.pause_share * pause_s
