"""Heuristic routers: one function each, from what a router may see to an action for each cluster.

Every function takes the simulation and a generator, and returns (B,) actions. It reads the observation only; the one
exception is ``impact_greedy_true``, the reference with true information. Where no expert can take the request, it is dropped.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rllib_envs.observation import ARRIVED_FEATURES, EXPERT_FEATURES, View
from rllib_envs.sim.whatif import WHATIF_FEATURES
from rllib_envs.simulation import Simulation

Actions = NDArray[np.int64]
Values = NDArray[np.floating[Any]]


class Router(Protocol):
    """Anything that decides for B clusters at once."""

    def __call__(self, simulation: Simulation, rng: np.random.Generator) -> Actions:
        """(B,) actions for the arrived requests."""
        ...


def random(simulation: Simulation, rng: np.random.Generator) -> Actions:
    """Any expert that can take the request, all equally likely."""
    mask = _mask(simulation.view)
    return _best(rng.random(mask.shape), mask)


def round_robin(simulation: Simulation, rng: np.random.Generator) -> Actions:
    """The experts in turn, skipping those that cannot take the request."""
    mask = _mask(simulation.view)
    n = mask.shape[1]
    return _best(-((np.arange(n) - simulation.cursor[:, None]) % n).astype(float), mask)


def join_shortest_queue(simulation: Simulation, rng: np.random.Generator) -> Actions:
    """The expert with the fewest requests, running or waiting; ties at random."""
    view = simulation.view
    return _best(-_present(view) - 0.5 * rng.random(_mask(view).shape), _mask(view))


def power_of_two(simulation: Simulation, rng: np.random.Generator) -> Actions:
    """The shorter queue of two experts drawn at random (Mitzenmacher 2001)."""
    view = simulation.view
    mask = _mask(view)
    draw = np.where(mask, rng.random(mask.shape), -1.0)
    second = np.sort(draw, axis=1)[:, -2:-1]
    return _best(-_present(view), mask & (draw >= second))


def least_work(simulation: Simulation, rng: np.random.Generator) -> Actions:
    """The expert with the least predicted work, this request included: tokens left times the engine's time for one."""
    view = simulation.view
    decode = 1024 * _expert(view, "decode_backlog") + 256 * _arrived(view, "told_length")
    prefill = 2048 * _expert(view, "prefill_backlog") + 1024 * _arrived(view, "prompt")
    return _best(-(decode * _expert(view, "base_time") + prefill / 1024 * _expert(view, "prefill_time")), _mask(view))


def least_kv(simulation: Simulation, rng: np.random.Generator) -> Actions:
    """The expert with the smallest share of its KV blocks in use; ties at random."""
    view = simulation.view
    return _best(-_expert(view, "kv_used") - 1e-6 * rng.random(_mask(view).shape), _mask(view))


def lmetric(simulation: Simulation, rng: np.random.Generator) -> Actions:
    """The least product of prefill tokens to compute (queued and new) and batch size (LMetric)."""
    view = simulation.view
    prefill = 2048 * _expert(view, "prefill_backlog") + 1024 * _arrived(view, "prompt")
    return _best(-prefill * (_present(view) + 1), _mask(view))


def quality_greedy(simulation: Simulation, rng: np.random.Generator, *, cap: float = np.inf) -> Actions:
    """The best told score among the experts with fewer than ``cap`` requests; the shortest queue where there is none."""
    view = simulation.view
    mask = _mask(view)
    free = mask & (_present(view) < cap)
    chosen = _best(_arrived(view, "told_score"), free)
    return np.where(free.any(axis=1), chosen, join_shortest_queue(simulation, rng))


def impact_greedy(simulation: Simulation, rng: np.random.Generator, *, price: float = 0.0, shrink: float = 0.75) -> Actions:
    """The best predicted marginal QoS: own chance to be in time times told score, plus the change for those present.

    Deadlines are soft, with the scale ``observation.whatif_tau`` of the scenario, since predictions err. Told scores are shrunk
    towards the expert's mean score (or spread, ``shrink`` > 1, against a high price). ``price`` charges for what the request
    costs those to come (``_congestion``). Drops what would do more harm than good.

    The scenario must ask for the what-if results (``observation.whatif``).
    """
    view = simulation.view
    means = np.array([expert.mean_score for expert in simulation.scenario.experts])
    score = means + shrink * (_arrived(view, "told_score") - means)
    value = score * _whatif(view, "own_success") + _whatif(view, "soft_change") - price * _congestion(view)
    mask = _mask(view)
    return np.where(np.where(mask, value, 0.0).max(axis=1) > 0, _best(value, mask), mask.shape[1])


def myopic_impact_greedy(simulation: Simulation, rng: np.random.Generator, *, shrink: float = 0.75) -> Actions:
    """``impact_greedy`` without a price: the best for those present, whoever may come."""
    return impact_greedy(simulation, rng, price=0.0, shrink=shrink)


def calibrated_impact_greedy(
    simulation: Simulation, rng: np.random.Generator, *, price: float = 0.0, shrink: float = 0.75
) -> Actions:
    """``impact_greedy`` that learns, while it works, how far told lengths and engine figures are off.

    The scenario must ask for the what-if results and for their calibration (``observation.whatif``, ``observation.calibrate``):
    it is there that this router differs.
    """
    return impact_greedy(simulation, rng, price=price, shrink=shrink)


def impact_greedy_true(simulation: Simulation, rng: np.random.Generator) -> Actions:
    """The best TRUE marginal QoS: what impact-greedy without a price would do if predictions were true; no router, and no bound.

    It is myopic and never drops: a price on congestion is worth more than the truth under load. The scenario must ask for the
    counterfactual.
    """
    mask = _mask(simulation.view)
    return _best(simulation.marginal[:, :-1], mask)


def _best(value: Values, mask: NDArray[np.bool_]) -> Actions:
    """The allowed expert of greatest value; drop where none is allowed."""
    best = np.where(mask, value, -np.inf).argmax(axis=1)
    return np.where(mask.any(axis=1), best, mask.shape[1])


def _mask(view: View) -> NDArray[np.bool_]:
    """(B, N) experts that can take the request."""
    return view.action_mask[:, :-1] > 0


def _expert(view: View, name: str) -> NDArray[np.float32]:
    return view.experts[..., EXPERT_FEATURES.index(name)]


def _arrived(view: View, name: str) -> NDArray[np.float32]:
    return view.arrived[..., ARRIVED_FEATURES.index(name)]


def _whatif(view: View, name: str) -> NDArray[np.float32]:
    return view.whatif[..., WHATIF_FEATURES.index(name)]


def _present(view: View) -> Values:
    """(B, N) requests at each expert."""
    return np.rint(32 * (_expert(view, "running") + _expert(view, "waiting")))


def _congestion(view: View) -> Values:
    """(B, N) what the request costs those to come.

    Its share of the batch's time while it is there, in units of 100 SLO, times the share of the KV memory that those present will
    need: the fuller the dearer. Of some twenty forms tried on edge6 the best.
    """
    sequence = _expert(view, "sequence_time") / 32
    context = _expert(view, "context_time") * (_arrived(view, "prompt") + _arrived(view, "told_length") / 8) / 16
    prefill = _expert(view, "prefill_time") * _arrived(view, "prompt")
    time = (256 * _arrived(view, "told_length") * (sequence + context) + prefill) / 100
    return time * _expert(view, "kv_reserved")
