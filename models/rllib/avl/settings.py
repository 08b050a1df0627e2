"""Settings of AVL, importable without RLlib."""

from __future__ import annotations

from dataclasses import dataclass

from rllib_envs.errors import InputError
from rllib_envs.scenarios.kinds import PLAIN_KIND, check_kinds

_LIMITS: dict[str, tuple[float, float]] = {
    "lam": (0, 1),
    "beta_per_s": (0, 1e6),
    "epochs": (1, 1000),
    "minibatch": (1, 10**8),
    "warmup": (0, 10**9),
    "clip": (0, 1),
    "kl_stop": (0, 1e6),
    "keep": (0, 1),
    "generations": (0, 10**9),
    "refinements": (0, 10**6),
    "population": (2, 4096),
    "search_variants": (0, 10**5),
    "search_drawn": (0, 10**5),
    "search_requests": (1, 10**6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AVLSettings:
    """Hyperparameters of AVL."""

    lam: float = 0.998
    """avl: lambda of the returns, 0 to 1. It mixes horizons."""
    beta_per_s: float = 0.03
    """avl: discount rate per second. A request stays for some ten seconds and costs others in that time."""
    epochs: int = 2
    """avl: passes over a sample."""
    minibatch: int = 2048
    """avl: decisions in a gradient step."""
    warmup: int = 5
    """avl: iterations before the future part learns; impact estimator and critic come first."""
    clip: float = 0.2
    """avl: bound on how far the probability of an action may move in an iteration, as a ratio."""
    kl_stop: float = 0.02
    """avl: KL divergence from the sampling router at which the future part rests until the next sample."""
    keep: float = 0.95
    """avl: EMA weight of the past in the router that is exported, per iteration."""
    generations: int = 20
    """avl: generations of the search for the congestion price, one an iteration, after the warm-up; 0: no search."""
    refinements: int = 0
    """avl: iterations after that search that move each parameter of the price up and down, for one last step."""
    population: int = 16
    """avl: prices tried in a generation, an even number."""
    search_variants: int = 18
    """avl: environment variants that each price is tried in."""
    search_drawn: int = 0
    """avl: drawn scenarios that each price is tried in beside them: other clusters, loads, arrivals and predictions each time."""
    search_kinds: tuple[str, ...] = (PLAIN_KIND,)
    """avl: kinds of those drawn scenarios, in turn: plain, classes, sites, private, or edge, which has all of them."""
    search_requests: int = 1000
    """avl: requests of an episode of that search."""

    def __post_init__(self) -> None:
        """Refuse invalid settings.

        Raises:
            InputError: a setting is out of range.
        """
        check_kinds(self.search_kinds, "search_kinds")
        for name, (low, high) in _LIMITS.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"{name} = {getattr(self, name)}: must be from {low:,} to {high:,}")
        if (self.generations or self.refinements) and not self.search_variants + self.search_drawn:
            raise InputError("search_variants = 0 and search_drawn = 0: a search for the price needs scenarios to try prices in")
        if self.population % 2:
            raise InputError(f"population = {self.population}: must be even")
