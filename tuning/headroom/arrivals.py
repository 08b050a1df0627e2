"""Arrivals that may follow, given those so far.

The gaps of a Poisson or gamma process are independent: those of a sample are drawn anew. An MMPP has a hidden state, quiet or
burst. A filter says what the arrivals so far tell of it. Between arrivals the probabilities move by the generator less the rates,
and at an arrival they are weighted by the rates (Fischer and Meier-Hellstern, 1993, "The Markov-modulated Poisson process
cookbook").
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import expm

from rllib_envs.errors import InputError
from rllib_envs.scenario import Scenario

KINDS = ("poisson", "gamma", "mmpp")
"""Processes whose future is drawn given their past."""

_QUIET, _BURST = 0, 1


class FutureArrivals:
    """Draws gaps between arrivals to come."""

    def __init__(self, scenario: Scenario, sampled_s: NDArray[np.float64]) -> None:
        """Take the process of a scenario.

        Args:
            scenario: the world, with a rate in numbers.
            sampled_s: arrival times of another episode of it.

        Raises:
            InputError: another process, a trace, or a rate that varies between episodes.
        """
        arrivals, rate_rps = scenario.workload.arrivals, scenario.workload.load
        if arrivals.kind not in KINDS or arrivals.trace is not None:
            raise InputError(f"arrivals.kind = {arrivals.kind!r}: roll-outs know the future of {', '.join(KINDS)} only")
        if isinstance(rate_rps, str):
            raise InputError(f"workload.load = {rate_rps!r}: roll-outs need a rate in requests per second")
        self._gaps_s = np.diff(sampled_s)
        self._process = None
        if arrivals.kind == "mmpp":
            self._process = Mmpp(rate_rps, arrivals.burst_ratio, arrivals.burst_share, arrivals.cycle_s)

    def gaps_s(self, past_s: NDArray[np.float64], shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
        """Gaps of ``shape`` (futures, requests) after the arrivals at ``past_s`` (n,), the last of which is now."""
        if self._process is None:
            return rng.choice(self._gaps_s, shape)
        return self._process.gaps_s(self._process.in_burst(past_s), shape, rng)


class Mmpp:
    """A Poisson process of two rates, which change at random."""

    def __init__(self, rate_rps: float, burst_ratio: float, burst_share: float, cycle_s: float) -> None:
        """Set it up as ``rllib_envs.workload.arrival_processes.mmpp`` does, with the same arguments."""
        quiet_rps = rate_rps / (1 - burst_share + burst_share * burst_ratio)
        self.rates = np.array([quiet_rps, quiet_rps * burst_ratio])
        self.stays_s = np.array([(1 - burst_share) * cycle_s, burst_share * cycle_s])
        self.start = np.array([1 - burst_share, burst_share])
        leave = 1 / self.stays_s
        self._silent = np.array([[-leave[0], leave[0]], [leave[1], -leave[1]]]) - np.diag(self.rates)
        self._known: tuple[NDArray[np.float64], NDArray[np.float64]] = np.zeros(0), self.start  # arrivals, belief after them

    def in_burst(self, past_s: NDArray[np.float64]) -> float:
        """Probability of a burst right after the arrivals at ``past_s`` (n,), from time 0 on."""
        known, belief = self._known
        if not np.array_equal(past_s[: known.size], known):
            known, belief = np.zeros(0), self.start
        new = past_s[known.size :]
        last = known[-1:] if known.size else np.zeros(1)
        for gap_s in np.diff(new, prepend=last):
            step: Any = expm(self._silent * gap_s)
            belief = belief @ step * self.rates
            belief = belief / belief.sum()
        self._known = past_s.copy(), belief
        return float(belief[_BURST])

    def gaps_s(self, in_burst: float, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
        """Gaps of ``shape`` (futures, requests) that begin in a burst with this probability."""
        futures = shape[0]
        work = np.cumsum(rng.standard_exponential(shape), axis=1)  # what the integral of the rate reaches at each arrival
        state = (rng.random(futures) < in_burst).astype(np.int64)
        changes, reached = [np.zeros(futures)], [np.zeros(futures)]
        while reached[-1].min() <= work.max():
            stay_s = rng.standard_exponential(futures) * self.stays_s[state]
            changes.append(changes[-1] + stay_s)
            reached.append(reached[-1] + stay_s * self.rates[state])
            state = 1 - state
        at_s, integral = np.stack(changes, axis=1), np.stack(reached, axis=1)
        times_s = np.stack([np.interp(work[f], integral[f], at_s[f]) for f in range(futures)])
        return np.diff(times_s, axis=1, prepend=0)
