"""Clusters under load, what a router sees of them as tensors, and routers whose every weight counts."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle, islice

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.price import TERMS
from models.router import Router, RouterSpec
from rllib_envs.scenario import Observation, Predictions, Scenario, with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.simulation import Simulation

ENCODERS = {
    "han": RouterSpec(graph_hidden=8, heads=2, hidden=12, impact_hidden=12),
    "han-two-layers": RouterSpec(graph_hidden=8, heads=2, layers=2, hidden=12, impact_hidden=12),
    "aggregates": RouterSpec(encoder="aggregates", hidden=12, impact_hidden=12),
    "pooled": RouterSpec(encoder="pooled", graph_hidden=8, heads=2, hidden=12, impact_hidden=12),
}


def encoders(*names: str) -> list[object]:
    """Names of encoders (default: all) for tests to take as parameters; the pooled one's torch-geometric is slow to import."""
    return [pytest.param(name, marks=pytest.mark.slow) if name == "pooled" else name for name in names or ENCODERS]


BARE_PRICE = dict.fromkeys(TERMS, 0.0) | {"level": 0.9, "load": 2.0, "power": 1.0}
"""Parameters of the price that leave nothing but congestion times the square of the load."""


def world(n: int = 6, *, load: float = 5.0, seats: int = 128, exact: bool = False, **observation: object) -> Scenario:
    """N experts of edge6, ``load`` requests/s for each; ``exact``: told lengths and scores are true."""
    scenario = with_workload(load_scenario("edge6"), requests=80 * n, load=load * n)
    errors = {"score_sd": 0.0, "length_log_sd": 0.0} if exact else {}
    predictions = Predictions(law="oracle-noise", **errors)  # whose scores send requests to every expert
    return replace(
        scenario,
        experts=tuple(
            replace(expert, name=f"{expert.name}-{i}", engine=replace(expert.engine, max_num_seqs=seats))
            for i, expert in enumerate(islice(cycle(scenario.experts), n))
        ),
        capacity_rps=4.0 * n,
        predictions=predictions,
        observation=Observation(**{"whatif": True, **observation}),  # type: ignore[arg-type]
    )


def busy(scenario: Scenario, *, clusters: int = 4, decisions: int | None = None, seed: int = 0) -> Simulation:
    """Clusters after decisions (default: eight for each expert) drawn from those that are possible."""
    simulation = Simulation(scenario, clusters)
    simulation.start_all([seed + cluster for cluster in range(clusters)])
    rng = np.random.default_rng(seed)
    for _ in range(8 * scenario.n_experts if decisions is None else decisions):
        simulation.step(any_action(simulation, rng))
    return simulation


def any_action(simulation: Simulation, rng: np.random.Generator) -> NDArray[np.int64]:
    """(B,) a possible action each, seldom a drop."""
    mask = simulation.view.action_mask > 0
    draws = rng.random(mask.shape) * np.append(np.ones(mask.shape[1] - 1), 0.5)
    return np.where(mask, draws, -1.0).argmax(axis=1)


def seen(simulation: Simulation, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The observations, (B, ...) each."""
    return {key: torch.from_numpy(value.copy()).to(dtype) for key, value in simulation.view._asdict().items() if value.size}


def untrained(spec: RouterSpec, dtype: torch.dtype = torch.float32) -> Router:
    """A router as it begins; the same every time."""
    torch.manual_seed(5)
    return Router(spec).to(dtype)


def stirred(spec: RouterSpec, dtype: torch.dtype = torch.float32) -> Router:
    """A router none of whose weights is zero, as after training."""
    router = untrained(spec, dtype)
    stir(router)
    return router


def stir(module: nn.Module) -> None:
    """Make every weight that is zero a random one."""
    for parameter in module.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
