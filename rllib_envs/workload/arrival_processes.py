"""The built-in arrival processes: Poisson, Gamma, Markov-modulated, diurnal, and fits of the Azure traces.

A new process is one function here under ``@arrival_process``; names, help and checks follow from it. It draws whole arrays from
the given generator: the same generator state gives the same bits. Replay of a trace is in ``replay.py``.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.errors import InputError
from rllib_envs.workload.arrival_process import ArrivalBatch, ArrivalProcess, Times, arrival_process
from rllib_envs.workload.azure import AzureKind, azure_lengths, azure_prompt_tokens

# Conversation: Gamma gaps times a log-normal pace that drifts from request to request. Fitted by simulated moments: over 100
# simulated hours the mean index of dispersion of counts is 1.39 and 16.3 in windows of 1 s and 60 s (trace: 1.39, 16.1).
_CONVERSATION_GAP_CV = 1.06  # of the gaps at constant pace, as of the trace's gaps in random order
_CONVERSATION_PACE_LOG_SD = 0.24
_CONVERSATION_PACE_MEMORY = 2000.0  # requests, about six minutes: the autocorrelation has fallen to 1/e there


class _Regime(NamedTuple):
    """Gaps of the code trace in one regime: within a batch sent at once, paced, or a pause between sessions."""

    batch_share: float  # of the gaps
    paced_log_mean: float  # log of seconds; paced gaps are log-normal
    paced_log_sd: float
    pause_share: float  # of the gaps


# Code: calm stretches with pauses, and bursts of about 100 requests at 25/s. Shares and runs come from a hidden Markov model of
# the trace's gaps. Gap laws come from moments of its gaps below 10 ms (batch), up to 1 s (paced) and above (pause). Then bursts
# were adjusted by simulated moments (gap CV, busiest second, index of dispersion in windows of 0.1 s to 120 s). Medians of 200
# simulated hours: gap CV 12.9 (trace 13.2), busiest second 60 requests (67), index of dispersion 12.5 in 1 s (13.2), 142 in
# 60 s (164). Each figure of the trace lies between the 5 % and 95 % quantiles of those hours.
_CODE_FLOOD_SHARE = 0.15  # of the requests
_CODE_FLOOD_RUN = 100.0  # requests, mean
_CODE_REGIMES = (
    _Regime(batch_share=0.36, paced_log_mean=-2.08, paced_log_sd=0.78, pause_share=0.016 / (1 - _CODE_FLOOD_SHARE)),
    _Regime(batch_share=0.55, paced_log_mean=-3.15, paced_log_sd=0.30, pause_share=0.0),
)
_CODE_BATCH_LOG_MEAN, _CODE_BATCH_LOG_SD = -6.8, 1.4  # log of seconds
_CODE_PAUSE_MIN_S, _CODE_PAUSE_SHAPE, _CODE_PAUSE_SCALE_S = 1.0, 0.22, 81.0  # minimum + Gamma

_MIN_CYCLE_ARRIVALS = 0.1  # bounds the work of mmpp per arrival
_DAY_STEPS = 4096  # the diurnal curve's integral is exact at this many points of a day, linear between them


@arrival_process()
def poisson(rate_rps: float, n: int, rng: np.random.Generator) -> Times:
    """Exponential gaps."""
    return _poisson_work(n, rng) / rate_rps


@arrival_process()
def gamma(rate_rps: float, n: int, rng: np.random.Generator, *, cv: float) -> Times:
    """Gaps with coefficient of variation ``cv``.

    Raises:
        InputError: ``cv`` outside 0.01 to 100.
    """
    if not 0.01 <= cv <= 100:
        raise InputError(f"arrivals.cv = {cv}: must be from 0.01 to 100")
    shape = cv**-2
    return np.cumsum(rng.standard_gamma(shape, n)) / (shape * rate_rps)


@arrival_process()
def mmpp(rate_rps: float, n: int, rng: np.random.Generator, *, burst_ratio: float, burst_share: float, cycle_s: float) -> Times:
    """A two-state Markov-modulated Poisson process, quiet and burst, starting stationary; ``cycle_s`` is real time.

    Raises:
        InputError: ``cycle_s`` below 0.1 / rate.
    """
    work, share, ratio = _poisson_work(n, rng), burst_share, burst_ratio
    _require_slower_than_gaps("cycle_s", cycle_s, rate_rps)
    quiet_rps = rate_rps / (1 - share + share * ratio)
    starts_in_burst = bool(rng.random() < share)
    sojourn_s = np.array([(1 - share) * cycle_s, share * cycle_s])
    rates = np.array([quiet_rps, quiet_rps * ratio])
    order = [1, 0] if starts_in_burst else [0, 1]
    cycles = int(work[-1] / (rate_rps * cycle_s)) + 16
    time_s = change = np.zeros(1)  # switching times, and the integral of the rate up to them
    while change[-1] <= work[-1]:
        stays = rng.standard_exponential((cycles, 2)) * sojourn_s[order]
        time_s = np.concatenate([time_s, time_s[-1] + np.cumsum(stays)])
        change = np.concatenate([change, change[-1] + np.cumsum(stays * rates[order])])
    return np.interp(work, change, time_s)


@arrival_process()
def diurnal(rate_rps: float, n: int, rng: np.random.Generator, *, period_s: float, amplitude: float) -> Times:
    """A Poisson process of rate ``rate * (1 + amplitude * sin(2 pi (t + offset) / period))``; the start time of day is uniform.

    Raises:
        InputError: ``period_s`` below 0.1 / rate.
    """
    work = _poisson_work(n, rng)
    _require_slower_than_gaps("period_s", period_s, rate_rps)
    day = np.linspace(0.0, 1.0, _DAY_STEPS + 1)
    integral = day + amplitude * (1 - np.cos(2 * np.pi * day)) / (2 * np.pi)  # in days' work; 1 at the end of a day
    offset = rng.random()  # time of day at the start, in days
    done = work / (rate_rps * period_s) + np.interp(offset, day, integral)
    days = np.floor(done)
    return np.maximum(days + np.interp(done - days, integral, day) - offset, 0.0) * period_s


@arrival_process(own_rate_rps=5.530, brings_prompts=True)
def azure_conversation(
    rate_rps: float, n: int, rng: np.random.Generator, *, lengths: Literal["trace", "catalogue"]
) -> ArrivalBatch:
    """The Azure LLM inference trace of 2023 for conversations: 19,366 requests in an hour."""
    return _azure("azure-conversation", _conversation_gaps(n, rng), rate_rps, rng, lengths)


@arrival_process(own_rate_rps=2.567, brings_prompts=True)
def azure_code(rate_rps: float, n: int, rng: np.random.Generator, *, lengths: Literal["trace", "catalogue"]) -> ArrivalBatch:
    """The Azure LLM inference trace of 2023 for code: 8,819 requests in an hour."""
    return _azure("azure-code", _code_gaps(n, rng), rate_rps, rng, lengths)


PROCESSES: dict[str, ArrivalProcess] = {
    name.replace("_", "-"): value for name, value in list(vars().items()) if isinstance(value, ArrivalProcess)
}
"""Name in a scenario and on the command line -> process, in the order of this file."""


def _poisson_work(n: int, rng: np.random.Generator) -> Times:
    """Arrival times (n,) of a Poisson process of rate 1: the values that the integral of another process's rate must reach."""
    return np.cumsum(rng.standard_exponential(n))


def _azure(
    kind: AzureKind, gaps: Times, rate_rps: float, rng: np.random.Generator, lengths: Literal["trace", "catalogue"]
) -> ArrivalBatch:
    """Prompts are drawn independently of the times: in the traces the correlation of prompts with neighbours is below 0.03."""
    prompt = azure_prompt_tokens(kind, gaps.size, rng)
    brought = azure_lengths(kind, prompt, rng) if lengths == "trace" else None
    return ArrivalBatch(arrival_s=np.cumsum(gaps) / rate_rps, prompt_tokens=prompt, lengths=brought)


def _require_slower_than_gaps(field: str, length_s: float, rate_rps: float) -> None:
    if length_s * rate_rps < _MIN_CYCLE_ARRIVALS:
        raise InputError(
            f"arrivals.{field} = {length_s} at rate_rps = {rate_rps}: must be at least {_MIN_CYCLE_ARRIVALS} / rate_rps; "
            "arrivals cannot follow a faster change: use kind 'poisson'"
        )


def _conversation_gaps(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Gaps (n,) of mean 1."""
    from scipy.signal import lfilter  # here: the import takes a second, and other processes do not need it

    keep = math.exp(-1 / _CONVERSATION_PACE_MEMORY)
    shocks = rng.standard_normal(n)
    shocks[1:] *= math.sqrt(1 - keep**2)  # the first is drawn from the stationary law
    wander = np.asarray(lfilter([1.0], [1.0, -keep], shocks))
    pace = np.exp(_CONVERSATION_PACE_LOG_SD * wander - _CONVERSATION_PACE_LOG_SD**2 / 2)  # mean 1
    shape = _CONVERSATION_GAP_CV**-2
    return rng.standard_gamma(shape, n) / shape * pace


def _code_gaps(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Gaps (n,) of mean 1. The regime is redrawn at random requests, which gives a stationary two-state Markov chain."""
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
