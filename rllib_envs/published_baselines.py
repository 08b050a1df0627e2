"""Published routers as baselines, written from their papers, under the rules of ``rllib_envs.baselines``.

Papers predict latency by trained models, profiles or simulators. Here their routers read the what-if results, as impact-greedy
does. So they differ in what they do with the same information. They have numbers to tune where their papers have some.

``lmetric``, ``slo_headroom`` and ``polyserve`` are from papers on servers of one model. They know no quality, so they send a
request to the worst model as soon as to the best. None here drops a request that some expert can take.
"""

from __future__ import annotations

import numpy as np

from rllib_envs.heuristic import (
    UNTUNED_TAU,
    Actions,
    Parameter,
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
from rllib_envs.lodestar import Lodestar
from rllib_envs.sim.rows import KV_UNIT_TOKENS
from rllib_envs.simulation import Simulation
from rllib_envs.view import View

_WEIGHT = Parameter(low=0.0, high=1e3, grid=(0.0, 0.2, 0.5, 1.0, 2.0))
_BOUND = Parameter(low=0.0, high=10.0, grid=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0))

_RELAX_STEP, _RELAX_ROUNDS = 0.1, 3


@heuristic()
def lmetric(simulation: Simulation, rng: np.random.Generator) -> Actions:
    """The least product of prefill tokens to compute (queued and new) and batch size (LMetric, arXiv 2603.15202).

    The batch includes the request itself; else the product would be 0 at every idle expert. There are no shared prefixes, so no
    token is cached.
    """
    view = simulation.view
    prefill = expert_quantity(view, "prefill_backlog") + arrived_quantity(view, "prompt")
    return best_expert(-prefill * (present(view) + 1), available(view))


@heuristic(
    needs=("whatif",),
    parameters={"latency": _WEIGHT, "cost": _WEIGHT, "confidence": Parameter(low=0.0, high=1.0)},
)
def route_balance(
    simulation: Simulation, rng: np.random.Generator, *, latency: float = 1.0, cost: float = 1.0, confidence: float = 0.7
) -> Actions:
    """RouteBalance (arXiv 2606.17949): a filter on P(in time), then a weighted sum of quality, latency and cost.

    The sum is ``score + latency * (1 - T / max T) + cost * (1 - C / max C)``, with maxima over the experts that pass. T is the
    predicted time to the end of the answer. C is its price: tokens times billions of parameters, since prices follow model size.
    The paper's three weights add up to 1; here the weight of quality is 1, which gives the same choices. Ties go to the shorter
    queue.

    The filter keeps the experts with ``P(in time) >= confidence``. If there are none, it relaxes by .1 up to three times, then it
    keeps all. P is the soft deadline, whose scale ``tau`` stands for the paper's measured errors of predictions. A request is
    routed as it arrives, without the paper's batches.
    """
    view = simulation.view
    mask = _in_time(whatif_feature(view, "own_success"), available(view), confidence)
    length = arrived_quantity(view, "predicted_length")
    params_b = np.array([expert.params_b for expert in simulation.scenario.experts])
    value = (
        arrived_feature(view, "predicted_score")
        + latency * _headroom_to_worst(length * whatif_feature(view, "own_latency"), mask)
        + cost * _headroom_to_worst((arrived_quantity(view, "prompt") + length) * params_b, mask)
    )
    return best_expert(value - 1e-9 * present(view), mask)


@heuristic(
    needs=("whatif",),
    parameters={
        "tau": UNTUNED_TAU,
        "bound": _BOUND,
        "most": Parameter(low=0, high=1, grid=(0, 1), whole=True),
    },
)
def slo_headroom(simulation: Simulation, rng: np.random.Generator, *, bound: float = 1.0, most: int = 0) -> Actions:
    """The least positive SLO headroom by predicted latency, or the most with ``most=1`` (llm-d's predicted-latency scheduler).

    Headroom is ``bound`` minus predicted latency, in SLO; ``bound`` is llm-d's buffer factor of the SLO. The least headroom packs
    requests and keeps experts free for bursts, the most spreads them. If no headroom is positive, idle experts go first, then the
    least negative headroom. llm-d has an SLO of the first token and one of later tokens, blended by weights; here is one. It may
    draw an expert by its score; here the best is taken.

    Source: llm-d documentation, "Predicted Latency-Based Scheduling", https://llm-d.ai/docs/guides/predicted-latency.
    """
    view = simulation.view
    mask = available(view)
    headroom = bound - whatif_feature(view, "own_latency")
    positive = mask & (headroom > 0)
    idle = mask & (present(view) == 0)
    pressed = best_expert(headroom, _where_any(idle, mask))
    return np.where(positive.any(axis=1), best_expert(headroom if most else -headroom, positive), pressed)


@heuristic(needs=("whatif",), parameters={"tau": UNTUNED_TAU, "bound": _BOUND})
def polyserve(simulation: Simulation, rng: np.random.Generator, *, bound: float = 1.0) -> Actions:
    """The most loaded expert that still meets the SLO, so that others stay free (PolyServe, arXiv 2507.17769).

    Load is the predicted iteration time at the largest batch and KV memory that those present will reach, the request included.
    An expert meets the SLO if this and the request's predicted latency are at most ``bound``, in SLO. If none does, the least
    loaded is taken. The paper puts requests into bins by their SLO, and servers into one pool for each bin. A scenario has one
    SLO, so one bin and one pool. Its autoscaling, and the chunk sizes that it sets in the engines, are no part of a router.
    """
    view = simulation.view
    mask = available(view)
    load = _peak_step_time(view)
    feasible = mask & (np.maximum(load, whatif_feature(view, "own_latency")) <= bound)
    return np.where(feasible.any(axis=1), best_expert(load, feasible), best_expert(-load, mask))


lodestar = heuristic(
    needs=("whatif",),
    parameters={
        "every": Parameter(low=1, grid=(100, 300, 1000), whole=True),
        "explore": Parameter(low=0.0, high=1.0, grid=(0.0, 0.02)),
    },
)(Lodestar)


def _in_time(probability: Values, mask: np.ndarray, confidence: float) -> np.ndarray:
    """(B, N) the experts that pass RouteBalance's filter, relaxed as far as it takes."""
    passed = mask & (probability >= confidence)
    for rounds in range(1, _RELAX_ROUNDS + 1):
        passed = _where_any(passed, mask & (probability >= confidence - rounds * _RELAX_STEP))
    return _where_any(passed, mask)


def _where_any(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(B, N) the first mask in the clusters where it allows any expert, else the second."""
    return np.where(first.any(axis=1, keepdims=True), first, second)


def _headroom_to_worst(value: Values, mask: np.ndarray) -> Values:
    """(B, N) 1 - value / the greatest value of the mask: 0 at the worst expert, towards 1 at better ones."""
    worst = np.where(mask, value, 0.0).max(axis=1, keepdims=True)
    return 1 - value / np.maximum(worst, 1e-9)


def _peak_step_time(view: View) -> Values:
    """(B, N) iteration time, in SLO, with the request and all present at their predicted length."""
    capacity = KV_UNIT_TOKENS * 2.0 ** expert_quantity(view, "kv_capacity")
    request = arrived_quantity(view, "prompt") + arrived_quantity(view, "predicted_length")
    tokens = capacity * expert_feature(view, "kv_reserved") + request
    decode = expert_quantity(view, "sequence_time") * present(view) + expert_quantity(view, "context_time") * tokens
    return expert_quantity(view, "base_time") + decode
