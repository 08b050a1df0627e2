"""A heuristic router: a function, the observation parts that it needs, and its numeric parameters.

``rllib_envs.baselines`` has the built-in ones. This module has the decorator and readers of the view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from rllib_envs.signatures import REQUIRED, keywords
from rllib_envs.sim.rows import ARRIVED_FEATURES, ARRIVED_TABLE, EXPERT_FEATURES, EXPERT_TABLE, WHATIF_FEATURES
from rllib_envs.simulation import Simulation
from rllib_envs.view import View

Actions = NDArray[np.int64]
Values = NDArray[np.floating[Any]]
Need = Literal["whatif", "calibrate", "counterfactual"]
"""A field of ``Observation`` that a scenario must switch on."""


class RoutingPolicy(Protocol):
    """Anything that decides for B clusters at once."""

    def __call__(self, simulation: Simulation, rng: np.random.Generator) -> Actions:
        """(B,) actions for the arrived requests."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A numeric parameter of a heuristic."""

    low: float = -math.inf
    high: float = math.inf
    grid: tuple[float, ...] = ()  # values that tune-heuristics tries first, ascending; () = not tuned
    whole: bool = False  # whether it is an integer


TAU = Parameter(low=1e-3, high=1e3, grid=(0.02, 0.05, 0.1, 0.2))
"""``tau``, which every heuristic with what-if results takes: the scenario's ``observation.whatif_tau``."""

UNTUNED_TAU = replace(TAU, grid=())
"""``tau`` of a heuristic that reads no soft deadline: it changes nothing, so there is nothing to tune."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heuristic:
    """A heuristic router and its metadata. A call returns its decisions."""

    decide: Callable[..., Any]  # the function; of a router that learns, the class of its policies
    needs: frozenset[Need]  # fields that its scenario must provide
    parameters: Mapping[str, Parameter]  # by name, those of the function and ``tau``
    best: bool  # whether it belongs to the group ``best``
    tuned_as: str | None  # heuristic whose tuned parameters it uses, if it has none of its own

    def __call__(self, simulation: Simulation, rng: np.random.Generator, **parameters: float) -> Actions:
        """(B,) actions for the arrived requests; a router that learns begins anew with each call."""
        return self.policy(**parameters)(simulation, rng)

    def policy(self, **parameters: float) -> RoutingPolicy:
        """The router of one run. What it learns is in the returned object alone."""
        return self.decide(**parameters) if isinstance(self.decide, type) else partial(self.decide, **parameters)

    @property
    def sees_truth(self) -> bool:
        """Whether it sees true lengths and scores, which a router never does."""
        return "counterfactual" in self.needs

    @property
    def grid(self) -> dict[str, tuple[float, ...]]:
        """Values to tune by parameter; empty if there are none."""
        if self.tuned_as is not None:
            return {}
        return {name: parameter.grid for name, parameter in self.parameters.items() if parameter.grid}


def heuristic(
    *,
    needs: Collection[Need] = (),
    parameters: Mapping[str, Parameter] | None = None,
    best: bool = False,
    tuned_as: str | None = None,
) -> Callable[[Callable[..., Any]], Heuristic]:
    """Make a heuristic of a function of (simulation, generator) and keyword-only numbers with defaults.

    A router that learns within an episode is a class instead. It is made from the numbers, and its instances are called with
    (simulation, generator). An instance serves one run, and forgets a cluster's past when an episode begins there.

    Args:
        needs: fields of ``Observation`` that it needs; with ``whatif`` it also takes ``tau``.
        parameters: bounds of its numbers (and of ``tau``), and values to tune; a number that is not named has no bounds.
        best: whether it belongs to ``best`` on the command line.
        tuned_as: name of the heuristic whose tuned parameters it uses.

    Raises:
        TypeError: the function has other arguments, or a named parameter does not exist.
    """

    def make(function: Callable[..., Any]) -> Heuristic:
        described = dict(parameters or {})
        numbers = keywords(function, () if isinstance(function, type) else ("simulation", "rng"))
        tau = {"tau": TAU} if "whatif" in needs else {}
        for name in described.keys() - numbers.keys() - tau.keys():
            raise TypeError(f"{name}: described, but no keyword-only parameter of the function")
        for name in [name for name, default in numbers.items() if default is REQUIRED]:
            raise TypeError(f"{name}: must have a default")
        rest = {name: Parameter() for name in numbers if name not in described}
        return Heuristic(
            decide=function, needs=frozenset(needs), parameters={**tau, **described, **rest}, best=best, tuned_as=tuned_as
        )

    return make


def as_heuristic(router: Callable[..., Actions]) -> Heuristic:
    """Return a heuristic unchanged; wrap a plain function as one that needs only the default view.

    Raises:
        TypeError: it does not take a router's arguments.
    """
    return router if isinstance(router, Heuristic) else heuristic()(router)


def best_expert(value: Values, allowed: NDArray[np.bool_]) -> Actions:
    """(B,) the allowed expert of greatest value, both (B, N); drop if none is allowed."""
    best = np.where(allowed, value, -np.inf).argmax(axis=1)
    return np.where(allowed.any(axis=1), best, allowed.shape[1])


def available(view: View) -> NDArray[np.bool_]:
    """(B, N) experts that can take the request."""
    return view.action_mask[:, :-1] > 0


def expert_feature(view: View, name: str) -> NDArray[np.float32]:
    """(B, N) a figure of each expert, of ``EXPERT_FEATURES``, as scaled for networks."""
    return view.experts[..., EXPERT_FEATURES.index(name)]


def arrived_feature(view: View, name: str) -> NDArray[np.float32]:
    """(B, N) a predicted figure of the arrived request at each expert, of ``ARRIVED_FEATURES``, as scaled for networks."""
    return view.arrived[..., ARRIVED_FEATURES.index(name)]


def expert_quantity(view: View, name: str) -> NDArray[np.float32]:
    """(B, N) the same as ``expert_feature`` in the unit of ``EXPERT_TABLE``: requests, tokens, SLO per token."""
    return EXPERT_TABLE[name].scale * expert_feature(view, name)


def arrived_quantity(view: View, name: str) -> NDArray[np.float32]:
    """(B, N) the same as ``arrived_feature`` in the unit of ``ARRIVED_TABLE``: tokens."""
    return ARRIVED_TABLE[name].scale * arrived_feature(view, name)


def whatif_feature(view: View, name: str) -> NDArray[np.float32]:
    """(B, N) a predicted effect of sending the request to each expert, of ``WHATIF_FEATURES``."""
    return view.whatif[..., WHATIF_FEATURES.index(name)]


def present(view: View) -> Values:
    """(B, N) requests at each expert, running or waiting."""
    return np.rint(expert_quantity(view, "running") + expert_quantity(view, "waiting"))
