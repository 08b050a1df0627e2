"""The training range of a router: the range of each input over the training scenarios, stored with the weights.

Far from its training data a network's scores are arbitrary; it may silently drop every request. The inputs here are those that
actions do not influence. They are read from observations in episodes whose requests are all dropped. A scenario is outside if an
leaves its range by more than a share of the range's width (``INPUTS``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from models.former_names import current_name
from rllib_envs.capacity import capacity_rps
from rllib_envs.observation import describe_engines
from rllib_envs.scenario import LOAD_FRACTIONS, Scenario, with_workload
from rllib_envs.sim.rows import ARRIVED_FEATURES, ARRIVED_TABLE, CLUSTER_FEATURES, EXPERT_FEATURES
from rllib_envs.simulation import Simulation

Floats = NDArray[np.float64]
Measured = dict[str, Floats]
"""Name of an input -> its values, (..., N), or (..., 1) for the whole cluster."""

_FIRST_SEED = 5_000_000  # of the episodes: neither for training nor for comparisons
_EPISODES, _REQUESTS = 4, 300
_PEAK = 0.95  # quantile over the decisions of an episode


def _plain(value: float) -> str:
    return f"{value:.3g}"


def _tokens(name: str, value: float) -> str:
    return f"{ARRIVED_TABLE[name].scale * math.expm1(value):.0f} tokens"


def _prompt(value: float) -> str:
    return _tokens("prompt", value)


def _length(value: float) -> str:
    return _tokens("predicted_length", value)


def _count(value: float) -> str:
    return f"{math.exp(value):.0f}"


def _share(value: float) -> str:
    return f"{value:.0%}"


def _ratio(value: float) -> str:
    return f"{math.exp(value):.3g}"


class Input(NamedTuple):
    """How to compare and show an input."""

    slack: float = 1.0  # how far a scenario may leave the range, in widths of it
    least: float = 0.1  # smallest width to assume: training may have had only one value
    show: Callable[[float], str] = _plain


_TOLD: dict[str, Input] = {
    "base_time": Input(),
    "sequence_time": Input(least=0.01),
    "context_time": Input(),
    "prefill_time": Input(least=1.0),
    "kv_capacity": Input(least=0.25),
    "max_running": Input(least=0.5),
    "mean_score": Input(),
}
"""Columns of EXPERT_FEATURES, as given to the router."""

_TIMES = ("base_time", "sequence_time", "context_time", "prefill_time")  # in units of the arrived request's bound

_OTHERS: dict[str, Input] = {
    "step_drift": Input(least=0.5),  # log of the actual over the nominal iteration time
    "length_drift": Input(least=0.5),  # log of true over predicted output tokens, the mean over requests
    "prompt": Input(least=0.25, show=_prompt),  # mean over requests of log(1 + feature)
    "predicted_length": Input(least=0.25, show=_length),
    # Prompts of which only the task is known are 1.9 and 1.4 widths off; the router works well there (docs/results.md).
    "score_spread": Input(slack=2.0, least=0.05),  # standard deviation of the predicted scores of an expert
    "score_noise": Input(slack=2.0, least=0.05),  # spread of the predicted scores of one request, beyond the means
    "experts": Input(least=0.5, show=_count),  # logarithm of their number
    "load": Input(slack=0.25, least=0.5, show=_share),  # mean rate over the capacity for such requests
    "peak_load": Input(least=1.0, show=_ratio),  # log_load_recent, exceeded in 5 % of the decisions
}
INPUTS: dict[str, Input] = {**_TOLD, **_OTHERS}
"""The inputs by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outside:
    """An input of a scenario that lies outside a router's training range."""

    name: str
    value: str
    low: str
    high: str
    excess: float  # excess in units of the allowed slack
    expert: int | None  # the expert concerned; None: the whole cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Envelope:
    """The range of each input over the training scenarios."""

    ranges: Mapping[str, tuple[float, float]]

    @classmethod
    def of(cls, measured: Sequence[Measured]) -> Envelope:
        """The union of the scenarios' ranges."""
        names = [name for name in INPUTS if all(name in one for one in measured)]
        lows = {name: min(float(one[name].min()) for one in measured) for name in names}
        highs = {name: max(float(one[name].max()) for one in measured) for name in names}
        return cls(ranges={name: (lows[name], highs[name]) for name in names})

    @classmethod
    def from_json(cls, data: Any) -> Envelope:
        """Read the result of ``to_json``.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(data, dict) or not data:
            raise ValueError("trained_on is no mapping")
        data = {current_name(name): limits for name, limits in cast(dict[Any, Any], data).items()}
        for name, limits in data.items():
            if name not in INPUTS:
                raise ValueError(f"trained_on.{name}: no such input")
            if not isinstance(limits, list) or len(cast(list[Any], limits)) != 2 or not all(map(_is_number, limits)):
                raise ValueError(f"trained_on.{name} = {limits!r:.100}: must be two numbers")
            if limits[0] > limits[1]:
                raise ValueError(f"trained_on.{name} = {limits}: the first must not exceed the second")
        return cls(ranges={name: (float(low), float(high)) for name, (low, high) in data.items()})

    def to_json(self) -> dict[str, list[float]]:
        """For JSON."""
        return {name: list(limits) for name, limits in self.ranges.items()}

    def rows(self) -> list[tuple[str, str, str]]:
        """Name, least and greatest value of each input, as text."""
        return [(name, INPUTS[name].show(low), INPUTS[name].show(high)) for name, (low, high) in self.ranges.items()]

    def __str__(self) -> str:
        """All ranges, in one line."""
        return ", ".join(f"{name} {low} to {high}" for name, low, high in self.rows())

    def outside(self, measured: Measured) -> list[Outside]:
        """The inputs of a scenario that are outside, the worst first."""
        found: list[Outside] = []
        for name, (low, high) in self.ranges.items():
            values = measured[name].reshape(-1, measured[name].shape[-1])
            excess = np.maximum(low - values, values - high)
            _, expert = np.unravel_index(int(excess.argmax()), excess.shape)
            judged = INPUTS[name]
            share = float(excess.max()) / (judged.slack * max(high - low, judged.least))
            if share > 1:
                found.append(
                    Outside(
                        name=name,
                        value=judged.show(float(values.flat[int(excess.argmax())])),
                        low=judged.show(low),
                        high=judged.show(high),
                        excess=share,
                        expert=int(expert) if values.shape[1] > 1 else None,
                    )
                )
        return sorted(found, key=lambda one: -one.excess)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(cast(float, value))


def measure(scenarios: Sequence[Scenario]) -> Measured:
    """Measure the inputs in scenarios of one cluster, on a few short fixed episodes each.

    Raises:
        InputError: a trace or catalogue cannot be read, or the scenarios differ in more than the episodes drawn (``Simulation``).
    """
    first = scenarios[0]
    shown = replace(first.observation, running_slots=1, waiting_slots=1, whatif=False, counterfactual=False, calibrate=False)
    capacity = capacity_rps(first)
    least = min(scenario.workload.requests or _REQUESTS for scenario in scenarios)
    alike = [
        replace(with_workload(scenario, requests=min(least, _REQUESTS)), observation=shown, capacity_rps=capacity)
        for scenario in scenarios
    ]
    simulation = Simulation(alike[0], len(alike), variants=alike)
    runs = [_run(simulation, _FIRST_SEED + i * len(alike)) for i in range(_EPISODES)]
    measured = {name: np.stack([run[name] for run in runs]) for name in runs[0]}
    rates = measured.pop("rate_rps")  # (episodes, B, 1)
    measured["load"] = np.concatenate([_loads(scenario, rates[:, b]) for b, scenario in enumerate(scenarios)])
    return measured


def _loads(scenario: Scenario, rates_rps: Floats) -> Floats:
    """(?, 1) possible mean rates of a scenario's episodes, over the cluster's capacity for such requests."""
    load = scenario.workload.load
    if load == "mixed":
        return np.array(scenario.workload.mixed_range)[:, None]
    if load in LOAD_FRACTIONS:
        return np.array([[LOAD_FRACTIONS[cast(str, load)]]])
    rate_rps = float(np.mean(rates_rps)) if isinstance(load, str) else load  # a trace's own rate, or the given one
    return np.array([[rate_rps / capacity_rps(replace(scenario, capacity_rps=None))]])


def _run(simulation: Simulation, first_seed: int) -> Measured:
    """Run an episode in each of B clusters, dropping all requests."""
    batch, n = simulation.batch, simulation.scenario.n_experts
    simulation.start_all([first_seed + i for i in range(batch)])
    view, workload = simulation.view, simulation.workload
    found: Measured = {name: _column(view.experts, EXPERT_FEATURES, name) for name in _TOLD}
    found["step_drift"] = np.log(_true_base_time(simulation) / found["base_time"])
    found |= {name: _of_classes(found[name], simulation) for name in _TIMES}
    found["experts"] = np.full((batch, 1), math.log(n))
    arrived, peaks, drop = [view.arrived.astype(np.float64)], [view.cluster.astype(np.float64)], np.full(batch, n)
    while not simulation.over.all():
        simulation.step(drop)
        arrived.append(view.arrived.astype(np.float64))
        peaks.append(view.cluster.astype(np.float64))
    for b in range(batch):
        count = int(workload.total[b])
        told = np.stack([step[b] for step in arrived[:count]])  # (M, N, 3)
        own = _of_requests(told, found["mean_score"][b])
        own["peak_load"] = np.quantile([_column(step[b], CLUSTER_FEATURES, "log_load_recent") for step in peaks[:count]], [_PEAK])
        span_s = workload.arrival_s[b, count - 1] - workload.arrival_s[b, 0]
        own["rate_rps"] = np.array([(count - 1) / span_s if span_s > 0 else 0.0])
        lengths = workload.output[b, :count] / np.maximum(workload.predicted_tokens[b, :count], 1)
        own["length_drift"] = np.log(lengths).mean(axis=0) - simulation.world.calibration.log_median[b]
        for name, values in own.items():
            found.setdefault(name, np.empty((batch, values.size)))[b] = values
    return found


def _of_requests(told: Floats, mean_score: Floats) -> Measured:
    """Predictions for M requests, (M, N, ARRIVED_FEATURES)."""
    prompt, score, length = (_column(told, ARRIVED_FEATURES, name) for name in ("prompt", "predicted_score", "predicted_length"))
    return {
        "prompt": np.log1p(prompt).mean(axis=0),
        "predicted_length": np.log1p(length).mean(axis=0),
        "score_spread": score.std(axis=0),
        "score_noise": np.sqrt((score - mean_score).var(axis=1, ddof=1).mean(keepdims=True)),
    }


def _of_classes(times: Floats, simulation: Simulation) -> Floats:
    """(C, B, N) times in units of each class's bound that requests may be of, from (B, N) in units of the first request's."""
    unit_s, first = simulation.world.service.terms["unit_s"], simulation.workload.user["service"][:, 0]
    trace = simulation.scenario.workload.arrivals.trace
    traced = trace is not None and trace.class_column is not None  # then shares do not count
    drawn = np.array([traced or entry.share > 0 for entry in simulation.scenario.classes] or [True])
    return times * (unit_s[first] / unit_s[drawn][:, None])[..., None]


def _true_base_time(simulation: Simulation) -> Floats:
    """(B, N) the actual ``base_time``, in units of the first request's bound as the view has it."""
    rows, learnt = simulation.rows.experts.copy(), simulation.world.calibration
    terms, first = simulation.world.service.terms, simulation.workload.user["service"][:, 0]
    for b in range(simulation.batch):
        describe_engines(simulation.state.engines, learnt, b, float(terms["unit_s"][first[b]]), rows)
    return rows["base_time"].astype(np.float64)


def _column(values: NDArray[Any], names: Sequence[str], name: str) -> Floats:
    return values[..., names.index(name)].astype(np.float64)
