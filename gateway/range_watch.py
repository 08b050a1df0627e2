"""Watch whether a cluster and its traffic stay where a trained router was trained (``models.envelope``)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gateway.live import LiveCluster
from models.envelope import INPUTS, Envelope, Outside
from rllib_envs.heuristic import arrived_feature, expert_feature
from rllib_envs.observation import describe_engines
from rllib_envs.sim.rows import CLUSTER_FEATURES, EXPERT_FEATURES

Floats = NDArray[np.float64]

_GAIN = 0.005  # of the moving averages over requests, once there have been as many as 1 / gain
_FIRST = 50  # requests that must have come before their averages are judged
_PEAK = 0.95  # quantile over late decisions, as in an envelope
_PEAK_STEP = 0.05  # by which its estimate moves

_OF_ENGINES = ("base_time", "sequence_time", "context_time", "prefill_time", "kv_capacity", "max_running", "mean_score")
_OF_TRAFFIC = ("prompt", "predicted_length", "score_spread", "score_noise", "peak_load")
_LEARNED = ("step_drift", "length_drift")


class RangeWatch:
    """Compares a live cluster with a training range, once with its engines and at each request with what has come.

    The mean load over the cluster's capacity is not watched: that needs the capacity for such requests. Its peaks are.

    Args:
        envelope: the training range.
        live: the cluster.
    """

    def __init__(self, envelope: Envelope, live: LiveCluster) -> None:
        self._envelope, self._live = envelope, live
        self._names = [name for name in (*_OF_TRAFFIC, *_LEARNED) if name in envelope.ranges]
        n = live.scenario.n_experts
        sizes = [1 if name in ("score_noise", "peak_load") else n for name in self._names]
        limits = [_limits(envelope, name) for name in self._names]
        self._low = np.repeat([low for low, _ in limits], sizes)
        self._high = np.repeat([high for _, high in limits], sizes)
        self._of_traffic = np.repeat([name in _OF_TRAFFIC for name in self._names], sizes)
        self._seen = 0
        self._prompt, self._length = np.zeros(n), np.zeros(n)
        self._score, self._square, self._noise = np.zeros(n), np.zeros(n), 0.0
        self._peak = -np.inf
        self._engines: dict[int, tuple[float, Outside | None]] = {}
        self._means = np.array([expert.mean_score for expert in live.scenario.experts])

    def note(self) -> None:
        """Count the request that the cluster shows."""
        view = self._live.view
        self._seen += 1
        gain = max(_GAIN, 1 / self._seen)
        score = arrived_feature(view, "predicted_score")[0].astype(np.float64)
        self._prompt += gain * (np.log1p(arrived_feature(view, "prompt")[0]) - self._prompt)
        self._length += gain * (np.log1p(arrived_feature(view, "predicted_length")[0]) - self._length)
        self._score += gain * (score - self._score)
        self._square += gain * (score * score - self._square)
        self._noise += gain * (float((score - self._means).var(ddof=1)) - self._noise)
        load = float(view.cluster[0, CLUSTER_FEATURES.index("log_load_recent")])
        if self._peak == -np.inf:
            self._peak = load
        self._peak += _PEAK_STEP * (_PEAK if load > self._peak else _PEAK - 1)

    def outside(self, service: int) -> Outside | None:
        """What is farthest outside for a request of this class, of the engines or of what has come; None: nothing."""
        if found := self._outside_engines(service):
            return found
        values = self.measured()
        flat = np.concatenate([values[name] for name in self._names]) if self._names else np.zeros(0)
        wrong = (flat < self._low) | (flat > self._high)
        if self._seen < _FIRST:
            wrong &= ~self._of_traffic
        if not wrong.any():
            return None
        return next(iter(self._judged(values, [name for name in self._names if self._seen >= _FIRST or name in _LEARNED])), None)

    def measured(self) -> dict[str, Floats]:
        """The inputs as they are now, by name: each (N,), or (1,) of the cluster."""
        view = self._live.view
        spread = np.sqrt(np.maximum(self._square - np.square(self._score), 0))
        return {
            "prompt": self._prompt,
            "predicted_length": self._length,
            "score_spread": spread,
            "score_noise": np.array([math.sqrt(max(self._noise, 0.0))]),
            "peak_load": np.array([self._peak]),
            "step_drift": expert_feature(view, "step_drift")[0].astype(np.float64),
            "length_drift": expert_feature(view, "length_drift")[0].astype(np.float64),
        }

    def _outside_engines(self, service: int) -> Outside | None:
        """The same of the engines as configured, in units of the class's bound; computed once for each bound."""
        unit_s = float(self._live.world.service.terms["unit_s"][service])
        kept = self._engines.get(service)
        if kept is None or kept[0] != unit_s:
            world, rows = self._live.world, self._live.rows.experts.copy()
            describe_engines(world.calibration.configured, world.calibration, 0, unit_s, rows)
            values = {name: rows[name][0].astype(np.float64) for name in _OF_ENGINES if name in EXPERT_FEATURES}
            values["experts"] = np.array([math.log(self._live.scenario.n_experts)])
            kept = self._engines[service] = unit_s, next(iter(self._judged(values, list(values))), None)
        return kept[1]

    def _judged(self, values: Mapping[str, Floats], names: Sequence[str]) -> list[Outside]:
        ranges = {name: limits for name, limits in self._envelope.ranges.items() if name in names}
        return replace(self._envelope, ranges=ranges).outside({name: values[name] for name in ranges}) if ranges else []


def _limits(envelope: Envelope, name: str) -> tuple[float, float]:
    """The least and greatest value that still count as inside."""
    low, high = envelope.ranges[name]
    slack = INPUTS[name].slack * max(high - low, INPUTS[name].least)
    return low - slack, high + slack
