"""How a router in training compares with the best heuristic: a short paired simulation, good for a rough idea alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rllib_envs.scenario import Scenario
from rllib_envs.simulation import Simulation
from tuning.matrix import TUNING_SEEDS, start_simulation
from tuning.routers import parse_router, with_tuned
from tuning.training_worlds import MIXED, OWN
from tuning.tuned import shipped_tuned
from tuning.workloads import TraceOptions, Workload, make_workloads

_BASELINE = "impact-greedy"
_LOADS = ("light", "moderate", "heavy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """QoS of a router over that of the heuristic on the same requests."""

    mean: float
    error: float  # half width of the 95 % confidence interval, from the episodes' spread


class Validator:
    """Compares routers with tuned impact-greedy on episodes that no evaluation uses.

    Args:
        scenario: the world trained in, without what varies.
        load: the load trained under; mixed stands for light, moderate and heavy.
        seeds: episodes for each load.
        requests: requests in an episode.
    """

    def __init__(self, scenario: Scenario, load: str, *, seeds: int, requests: int) -> None:
        observation = replace(scenario.observation, counterfactual=False)
        world = replace(scenario, observation=observation, variation=None)
        loads = _LOADS if load == MIXED else () if load == OWN else (load,)
        self._workloads = make_workloads(world, loads, (), TraceOptions(), requests)
        self._seeds = tuple(TUNING_SEEDS[:seeds])
        self._baseline: NDArray[np.float64] | None = None

    def compare(self, router: nn.Module) -> dict[str, Difference]:
        """Load -> difference to the heuristic, of the router taking the action that it scores highest."""
        if self._baseline is None:
            self._baseline = np.stack([self._heuristic(workload) for workload in self._workloads])
        differences = self._qos(router) - self._baseline
        return {workload.load: _difference(row) for workload, row in zip(self._workloads, differences, strict=True)}

    def _heuristic(self, workload: Workload) -> NDArray[np.float64]:
        tuned = shipped_tuned(workload.scenario)
        spec = with_tuned(parse_router(_BASELINE), tuned.at(workload) if tuned else {})
        simulation = start_simulation(spec, workload.scenario, self._seeds)
        return np.array([simulation.records(b).qos.mean() for b in range(len(self._seeds))])

    def _qos(self, router: nn.Module) -> NDArray[np.float64]:
        """(workloads, seeds): all in one batch."""
        worlds = [workload.scenario for workload in self._workloads for _ in self._seeds]
        simulation = Simulation(worlds[0], len(worlds), worlds=worlds)
        simulation.start_all(list(self._seeds) * len(self._workloads))
        observation = {key: torch.from_numpy(value) for key, value in simulation.view._asdict().items() if value.size}
        with torch.inference_mode():
            while not simulation.over.all():
                simulation.step(router(observation).argmax(dim=-1).numpy())
        qos = [simulation.records(b).qos.mean() for b in range(len(worlds))]
        return np.reshape(qos, (len(self._workloads), -1))


def _difference(values: NDArray[np.float64]) -> Difference:
    error = 1.96 * float(values.std(ddof=1)) / math.sqrt(values.size) if values.size > 1 else math.nan
    return Difference(mean=float(values.mean()), error=error)
