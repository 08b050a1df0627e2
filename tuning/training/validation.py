"""Validate a router in training against the best heuristic, in a short paired simulation: a rough estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.router import Router
from rllib_envs.scenario import Scenario
from rllib_envs.simulation import Records, Simulation
from tuning.evaluation.matrix import TUNING_SEEDS, start_simulation
from tuning.evaluation.tuned import shipped_tuned
from tuning.metrics.episode import mean_qos, request_metrics, routing_shares
from tuning.specs.routers import parse_router, with_tuned
from tuning.specs.workloads import NamedWorkload, TraceOptions, make_workloads
from tuning.training.variants import MIXED, OWN

_BASELINE = "impact-greedy"
_LOADS = ("light", "moderate", "heavy")
_FIGURES = ("qos", "violation_rate", "drop_rate", "rejected_rate", "latency_per_token_p50_s", "latency_per_token_p99_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """QoS of a router less that of the heuristic on the same requests."""

    mean: float
    error: float  # half width of the 95 % confidence interval, from the episodes' spread
    figures: dict[str, float] = field(default_factory=dict[str, float])  # of the router; those that are not known are absent

    def to_dict(self) -> dict[str, float]:
        """All of it by name."""
        return {"mean": self.mean, "error": self.error, **self.figures}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Episodes:
    """Results on W workloads with S seeds each."""

    qos: NDArray[np.float64]  # (W, S)
    figures: list[dict[str, float]]  # of each workload


def validation_workloads(scenario: Scenario, load: str, requests: int) -> list[NamedWorkload]:
    """The validation workloads for a training load; mixed stands for light, moderate and heavy.

    Raises:
        InputError: no such load.
    """
    loads = _LOADS if load == MIXED else () if load == OWN else (load,)
    return make_workloads(scenario, loads, (), TraceOptions(), requests)


class Validator:
    """Compares routers with tuned impact-greedy on episodes that no evaluation uses.

    Args:
        scenario: the training scenario, without variation.
        load: the load trained under; mixed stands for light, moderate and heavy.
        seeds: episodes for each load.
        requests: requests in an episode.
    """

    def __init__(self, scenario: Scenario, load: str, *, seeds: int, requests: int) -> None:
        observation = replace(scenario.observation, counterfactual=True)  # costs little, and no router sees it
        shown = replace(scenario, observation=observation, variation=None)
        self._workloads = validation_workloads(shown, load, requests)
        self._seeds = tuple(TUNING_SEEDS[:seeds])
        self._baseline: NDArray[np.float64] | None = None

    def compare(self, router: nn.Module) -> dict[str, Difference]:
        """Compare the greedy router with the heuristic: load -> difference."""
        if self._baseline is None:
            self._baseline = np.stack([self._heuristic(workload) for workload in self._workloads])
        episodes = self._run(router)
        differences = episodes.qos - self._baseline
        return {
            workload.load: _difference(row, figures)
            for workload, row, figures in zip(self._workloads, differences, episodes.figures, strict=True)
        }

    def _heuristic(self, workload: NamedWorkload) -> NDArray[np.float64]:
        tuned = shipped_tuned(workload.scenario)
        spec = with_tuned(parse_router(_BASELINE), tuned.choose(workload).parameters if tuned else {})
        simulation = start_simulation(spec, workload.scenario, self._seeds)
        return np.array([mean_qos(simulation.records(b)) for b in range(len(self._seeds))])

    def _run(self, router: nn.Module) -> _Episodes:
        """All episodes, in one batch."""
        variants = [workload.scenario for workload in self._workloads for _ in self._seeds]
        simulation = Simulation(variants[0], len(variants), variants=variants)
        simulation.start_all(list(self._seeds) * len(self._workloads))
        observation = {key: torch.from_numpy(value) for key, value in simulation.view._asdict().items() if value.size}
        told: list[NDArray[np.float64]] = []
        with torch.inference_mode():
            while not simulation.over.all():
                scores, impact = _look(router, observation)
                actions = scores.argmax(dim=-1).numpy()
                told.append(_told(simulation, actions, impact))
                simulation.step(actions)
        told_of = np.stack(told).reshape(len(told), 2, len(self._workloads), len(self._seeds))
        qos: list[list[float]] = []
        figures: list[dict[str, float]] = []
        for i in range(len(self._workloads)):
            records = [simulation.records(i * len(self._seeds) + j) for j in range(len(self._seeds))]
            qos.append([mean_qos(r) for r in records])
            busy_s = simulation.state.experts["busy_s"][i * len(self._seeds) : (i + 1) * len(self._seeds)]
            figures.append(_figures(simulation.scenario, records) | _calibration(told_of[:, 0, i], told_of[:, 1, i]))
            figures[-1]["gpu_s_per_request"] = float(busy_s.sum()) / sum(r.qos.size for r in records)
        return _Episodes(qos=np.array(qos), figures=figures)


def _look(router: nn.Module, observation: dict[str, Any]) -> tuple[torch.Tensor, NDArray[np.float32]]:
    """(B, N + 1) scores, and (B, N) predicted impact for each expert; NaN from a router without an estimator."""
    if isinstance(router, Router):
        parts = router.parts(observation)
        return router.scores(observation, parts), parts.impact.numpy()
    scores: torch.Tensor = router(observation)
    return scores, np.full((scores.shape[0], scores.shape[1] - 1), math.nan, np.float32)


def _told(simulation: Simulation, actions: NDArray[np.int64], impact: NDArray[np.float32]) -> NDArray[np.float64]:
    """(2, B) predicted impact of its actions, and true marginal QoS; NaN for drops and finished episodes."""
    told = np.full((2, len(actions)), math.nan)
    sent = np.flatnonzero(~simulation.over & (actions < impact.shape[-1]))
    told[0, sent], told[1, sent] = impact[sent, actions[sent]], simulation.marginal[sent, actions[sent]]
    return told


def _figures(scenario: Scenario, records: Sequence[Records]) -> dict[str, float]:
    """Means over episodes, and the share of the requests that went to each expert, and that were dropped."""
    metrics = [request_metrics(r) for r in records]
    shares = np.mean([routing_shares(scenario, r) for r in records], axis=0).tolist()
    names = [*(expert.name for expert in scenario.experts), "drop"]
    return {name: float(np.mean([m[name] for m in metrics])) for name in _FIGURES} | {
        f"share/{name}": share for name, share in zip(names, shares, strict=True)
    }


def _calibration(expected: NDArray[np.float64], true: NDArray[np.float64]) -> dict[str, float]:
    """Accuracy of the impact estimate, in QoS of a request: means, root mean square error, correlation."""
    known = np.isfinite(expected)
    if not known.any():
        return {}
    x, y = expected[known], true[known]
    spread = float(x.std() * y.std())
    return {
        "impact_expected": float(x.mean()),
        "impact_true": float(y.mean()),
        "impact_rmse": float(np.sqrt(((x - y) ** 2).mean())),
        "impact_correlation": float(((x - x.mean()) * (y - y.mean())).mean()) / spread if spread else math.nan,
    }


def _difference(values: NDArray[np.float64], figures: dict[str, float]) -> Difference:
    error = 1.96 * float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else math.nan
    known = {name: value for name, value in figures.items() if math.isfinite(value)}
    return Difference(mean=float(values.mean()), error=error, figures=known)
