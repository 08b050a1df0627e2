"""Refine a price by a response surface: each parameter alone up and down in many worlds, then one step of all.

Near the best price the noise between random candidates is larger than what is left to gain. Moved alone, a parameter shows what
it does to the QoS of each world, as a parabola (Box and Wilson, J. R. Stat. Soc. B 13, 1951). The worlds differ in it, so one
also sees whom a step would harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.price import Term

Array = NDArray[np.float64]

LENGTH = 4
"""Requests of an episode over those of the search: small differences must show through the noise."""

_MOVE = 2.0  # of a parameter up and down, in spreads of the search
_LOSS = 8.0  # weight of what a step loses against the reference in a world, beside what it gains in others
_RIDGE = 0.002  # QoS that a step of one move in one parameter must gain: parabolas are noisy, and parameters act together
_OWN = 0.5  # weight of a world's own curvature beside the mean one: it is the noisiest part


class PriceRefinement:
    """Collects responses around a price, and steps from it.

    Args:
        terms: the price's parameters.
        reference: some of the parameters, of a price that a step should fall behind nowhere; None for no such price.

    Attributes:
        responses: (W, 2 P + 2) mean QoS of each world: unmoved, each parameter up, each down, then the reference. Without a
            reference, one column less.
        generation: number of generations told.
    """

    def __init__(self, terms: Mapping[str, Term], reference: Mapping[str, float] | None = None) -> None:
        self._moves = _MOVE * np.array([term.spread for term in terms.values()])
        priors = {name: term.prior for name, term in terms.items()}
        self._reference = np.array([list((priors | dict(reference)).values())]) if reference else np.zeros((0, len(terms)))
        self.responses = np.zeros((0, 1 + 2 * len(terms) + len(self._reference)))
        self.generation = 0

    def ask(self, start: Array) -> Array:
        """(K, P) the candidates around a price (P,), in the order of ``responses``; the same in every generation."""
        moves = np.diag(self._moves)
        return np.concatenate([start + np.concatenate([np.zeros((1, len(start))), moves, -moves]), self._reference])

    def tell(self, qos: Array) -> None:
        """Report (K, W) mean QoS of the candidates in W worlds."""
        self.responses = np.concatenate([self.responses, qos.T])
        self.generation += 1

    def step(self) -> Array:
        """(P,) the step from the price that the responses are around: 0 without responses.

        It maximises the mean over worlds of the gain, each the sum of the parameters' parabolas, within one move of each
        parameter. What a world loses against the reference counts eight times. Each parameter costs ``_RIDGE`` per square move.
        """
        from scipy.optimize import minimize  # here: few runs refine, and all would wait for the import

        count = len(self._moves)
        if not len(self.responses):
            return np.zeros(count)
        unmoved, up, down = self.responses[:, :1], self.responses[:, 1 : count + 1], self.responses[:, count + 1 : 2 * count + 1]
        slope, curve = (up - down) / 2, (up + down) / 2 - unmoved
        curve = _OWN * curve + (1 - _OWN) * curve.mean(axis=0)
        ahead = (unmoved - self.responses[:, -1:])[:, 0] if len(self._reference) else np.full(len(unmoved), np.inf)

        def cost(x: Array) -> tuple[float, Array]:
            gain = slope @ x + curve @ x**2
            lead = ahead + gain
            behind = lead < 0
            # Gains count from where the price stands, and what is behind the reference counts more.
            value = gain + (_LOSS - 1) * np.where(behind, lead, 0.0)
            weight = np.where(behind, _LOSS, 1.0)[:, None]
            gradient = (weight * (slope + 2 * curve * x)).mean(axis=0)
            return float(_RIDGE * (x**2).sum() - value.mean()), 2 * _RIDGE * x - gradient

        found = minimize(cost, np.zeros(count), jac=True, method="L-BFGS-B", bounds=[(-1.0, 1.0)] * count)
        return self._moves * found.x

    def get_state(self) -> dict[str, Any]:
        """For ``set_state``."""
        return {"responses": self.responses, "generation": self.generation}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore the result of ``get_state``."""
        self.responses, self.generation = state["responses"], state["generation"]
