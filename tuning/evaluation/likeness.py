"""Similarity of two workloads in what matters for a router's parameters: burstiness, prompt and answer lengths.

No figure depends on the unit of time: replaying a trace faster does not change its similarity to others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from rllib_envs.capacity import capacity_rps
from rllib_envs.scenario import Scenario, with_workload
from rllib_envs.workload.episode import draw_episode
from tuning.evaluation.matrix import TUNING_SEEDS

ALIKE = 2.0
"""Two workloads are alike where no figure of the one is more than so many times that of the other."""

_EPISODES, _REQUESTS = 8, 2000
_WINDOW = 20  # mean gaps between arrivals
_LEAST = 1e-2  # figures below are equal: arrivals at fixed intervals have a variation of 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficProfile:
    """Statistics of a workload's requests; NaN if there are too few."""

    gap_variation: float  # coefficient of variation of the gaps between arrivals; 1 for a Poisson process
    dispersion: float  # variance over mean of the arrivals in windows of 20 mean gaps; 1 for a Poisson process
    prompt_tokens: float  # geometric mean
    output_tokens: float  # geometric mean over requests and experts
    rate_rps: float  # requests/s; not part of the similarity

    def __str__(self) -> str:
        """The figures, for a note."""
        return (
            f"gaps vary by {self.gap_variation:.2g}, arrivals in {_WINDOW} gaps by {self.dispersion:.2g}, "
            f"prompts {self.prompt_tokens:.0f} tokens, answers {self.output_tokens:.0f}"
        )

    def distance(self, other: TrafficProfile) -> float:
        """The largest factor by which two workloads differ, over the known figures."""
        names = [field.name for field in fields(self) if field.name != "rate_rps"]
        pairs = [(getattr(self, name), getattr(other, name)) for name in names]
        known = [(a, b) for a, b in pairs if not math.isnan(a) and not math.isnan(b)]
        ratios = [max(a, _LEAST) / max(b, _LEAST) for a, b in known]
        return max((max(ratio, 1 / ratio) for ratio in ratios), default=math.inf)


def traffic_profile(scenario: Scenario) -> TrafficProfile:
    """Measure the requests of a scenario's workload on episodes that no comparison uses.

    Raises:
        InputError: the trace or the catalogue cannot be read.
    """
    world, capacity = with_workload(scenario, requests=_REQUESTS), capacity_rps(scenario)
    episodes = [draw_episode(world, capacity, seed) for seed in TUNING_SEEDS[:_EPISODES]]
    return TrafficProfile(
        gap_variation=_mean([_gap_variation(episode.arrival_s) for episode in episodes]),
        dispersion=_mean([_dispersion(episode.arrival_s) for episode in episodes]),
        prompt_tokens=_geometric_mean([episode.prompt for episode in episodes]),
        output_tokens=_geometric_mean([episode.output for episode in episodes]),
        rate_rps=_mean([_rate_rps(episode.arrival_s) for episode in episodes]),
    )


def _rate_rps(arrival_s: NDArray[np.float64]) -> float:
    span_s = arrival_s[-1] - arrival_s[0]
    return float((arrival_s.size - 1) / span_s) if span_s > 0 else math.nan


def _gap_variation(arrival_s: NDArray[np.float64]) -> float:
    gaps_s = np.diff(arrival_s)
    return float(gaps_s.std() / gaps_s.mean()) if gaps_s.sum() > 0 else math.nan


def _dispersion(arrival_s: NDArray[np.float64]) -> float:
    windows = (arrival_s.size - 1) // _WINDOW
    if windows < 2 or arrival_s[-1] <= arrival_s[0]:
        return math.nan
    counts, _ = np.histogram(arrival_s, bins=windows)
    return float(counts.var(ddof=1) / counts.mean())


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _geometric_mean(tokens: Sequence[NDArray[np.int32]]) -> float:
    return float(np.exp(np.mean([np.log(x).mean() for x in tokens])))
