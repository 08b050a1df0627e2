"""Heuristic routers: one function each, from a router's view to an action for each cluster.

A new heuristic is one function here under ``@heuristic``; names, help, checks and tuning follow from it. It takes the
simulation and a generator, and returns (B,) actions. It reads only the observation. The one exception is
``impact_greedy_true``, the reference with true information. If no expert can take the request, it is dropped.
``rllib_envs.published_baselines`` has the routers of papers; ``HEURISTICS`` lists all.
"""

from __future__ import annotations

import numpy as np

from rllib_envs import published_baselines
from rllib_envs.heuristic import (
    Actions,
    Heuristic,
    Parameter,
    RoutingPolicy,
    Values,
    arrived_feature,
    arrived_quantity,
    available,
    best_expert,
    expert_feature,
    expert_quantity,
    heuristic,
    present,
    whatif_feature,
)
from rllib_envs.simulation import Simulation
from rllib_envs.view import View

__all__ = ["HEURISTICS", "Actions", "RoutingPolicy"]

_PRICE = Parameter(low=0.0, high=1e3, grid=(0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0))
_SHRINK = Parameter(low=0.0, high=10.0, grid=(0.75, 1.0, 1.25, 1.5))


@heuristic()
def random(simulation: Simulation, rng: np.random.Generator) -> Actions:
    """A random expert that can take the request, all equally likely."""
    mask = available(simulation.view)
    return best_expert(rng.random(mask.shape), mask)


@heuristic()
def round_robin(simulation: Simulation, rng: np.random.Generator) -> Actions:
    """The experts in turn; skips those that cannot take the request."""
    mask = available(simulation.view)
    n = mask.shape[1]
    return best_expert(-((np.arange(n) - simulation.cursor[:, None]) % n).astype(float), mask)


@heuristic(best=True)
def join_shortest_queue(simulation: Simulation, rng: np.random.Generator) -> Actions:
    """The expert with the fewest requests, running or waiting; ties at random."""
    view = simulation.view
    return best_expert(-present(view) - 0.5 * rng.random(available(view).shape), available(view))


@heuristic()
def power_of_two(simulation: Simulation, rng: np.random.Generator) -> Actions:
    """The shorter queue of two experts drawn at random (Mitzenmacher 2001)."""
    view = simulation.view
    mask = available(view)
    draw = np.where(mask, rng.random(mask.shape), -1.0)
    second = np.sort(draw, axis=1)[:, -2:-1]
    return best_expert(-present(view), mask & (draw >= second))


@heuristic(best=True)
def least_work(simulation: Simulation, rng: np.random.Generator) -> Actions:
    """The expert with the least predicted work, this request included: tokens left times the engine's time per token."""
    return best_expert(-predicted_work(simulation), available(simulation.view))


def predicted_work(simulation: Simulation) -> Values:
    """(B, N) predicted work of each expert with this request: tokens left times the engine's time per token, in SLO."""
    view = simulation.view
    decode = expert_quantity(view, "decode_backlog") + arrived_quantity(view, "predicted_length")
    prefill = expert_quantity(view, "prefill_backlog") + arrived_quantity(view, "prompt")
    return decode * expert_quantity(view, "base_time") + prefill * expert_quantity(view, "prefill_time")


@heuristic()
def least_kv(simulation: Simulation, rng: np.random.Generator) -> Actions:
    """The expert with the smallest share of its KV blocks in use; ties at random."""
    view = simulation.view
    return best_expert(-expert_feature(view, "kv_used") - 1e-6 * rng.random(available(view).shape), available(view))


@heuristic(
    best=True,
    parameters={"cap": Parameter(low=1.0, grid=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 512), whole=True)},
)
def quality_greedy(simulation: Simulation, rng: np.random.Generator, *, cap: float = np.inf) -> Actions:
    """The best predicted score among the experts with fewer than ``cap`` requests; the shortest queue if there is none."""
    view = simulation.view
    mask = available(view)
    free = mask & (present(view) < cap)
    chosen = best_expert(arrived_feature(view, "predicted_score"), free)
    return np.where(free.any(axis=1), chosen, join_shortest_queue(simulation, rng))


@heuristic(best=True, needs=("whatif",), parameters={"shrink": _SHRINK, "price": _PRICE})
def impact_greedy(simulation: Simulation, rng: np.random.Generator, *, price: float = 0.0, shrink: float = 0.75) -> Actions:
    """The best predicted marginal QoS: P(in time) times predicted score, plus the change for in-flight requests.

    Deadlines are soft, with the scale ``observation.whatif_tau`` of the scenario, since predictions err. Predicted scores are
    shrunk towards the expert's mean score; ``shrink`` > 1 spreads them, against a high price. ``price`` is the congestion price:
    it charges for the opportunity cost of the request (``_congestion``). Drops requests of negative value.

    The scenario must provide the what-if results (``observation.whatif``).
    """
    value, mask = impact_value(simulation, price=price, shrink=shrink), available(simulation.view)
    return np.where(np.where(mask, value, 0.0).max(axis=1) > 0, best_expert(value, mask), mask.shape[1])


def impact_value(simulation: Simulation, *, price: float = 0.0, shrink: float = 0.75) -> Values:
    """(B, N) what ``impact_greedy`` takes each expert to be worth; a drop is worth 0."""
    view = simulation.view
    means = np.array([expert.mean_score for expert in simulation.scenario.experts])
    score = means + shrink * (arrived_feature(view, "predicted_score") - means)
    return score * whatif_feature(view, "own_success") + whatif_feature(view, "soft_change") - price * _congestion(view)


@heuristic(needs=("whatif",), parameters={"shrink": _SHRINK})
def myopic_impact_greedy(simulation: Simulation, rng: np.random.Generator, *, shrink: float = 0.75) -> Actions:
    """``impact_greedy`` without a price: the best action for in-flight requests, without regard to later ones."""
    return impact_greedy(simulation, rng, price=0.0, shrink=shrink)


@heuristic(
    best=True,
    needs=("whatif", "calibrate"),
    parameters={"shrink": _SHRINK, "price": _PRICE},
    tuned_as="impact-greedy",
)
def calibrated_impact_greedy(
    simulation: Simulation, rng: np.random.Generator, *, price: float = 0.0, shrink: float = 0.75
) -> Actions:
    """``impact_greedy`` with online calibration: it learns the errors of predicted lengths and engine figures.

    The scenario must provide the what-if results and their calibration (``observation.whatif``, ``observation.calibrate``). Only
    these inputs differ from ``impact_greedy``.
    """
    return impact_greedy(simulation, rng, price=price, shrink=shrink)


@heuristic(needs=("counterfactual",))
def impact_greedy_true(simulation: Simulation, rng: np.random.Generator) -> Actions:
    """The best TRUE marginal QoS: impact-greedy without a price and with perfect predictions; no router, and no upper bound.

    It is myopic and never drops: under load a congestion price is worth more than the truth. The scenario must provide the
    counterfactual.
    """
    mask = available(simulation.view)
    return best_expert(simulation.marginal[:, :-1], mask)


def _congestion(view: View) -> Values:
    """(B, N) the opportunity cost of the request.

    Its share of the batch time over its stay, in units of 100 SLO, times the reserved share of the KV memory. The cost rises as
    the memory fills. This was the best of some twenty forms tried on edge6.
    """
    prompt, length = arrived_quantity(view, "prompt"), arrived_quantity(view, "predicted_length")
    per_token = expert_quantity(view, "sequence_time") + expert_quantity(view, "context_time") * (prompt + length / 2)
    time = (length * per_token + expert_quantity(view, "prefill_time") * prompt) / 100
    return time * expert_quantity(view, "kv_reserved")


HEURISTICS: dict[str, Heuristic] = {
    name.replace("_", "-"): value
    for name, value in [*vars().items(), *vars(published_baselines).items()]
    if isinstance(value, Heuristic)
}
"""Name on the command line -> heuristic, in the order of this file, then of the published ones."""
