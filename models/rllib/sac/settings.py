"""Settings of SAC, importable without RLlib."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rllib_envs.errors import InputError

_LIMITS: Mapping[str, tuple[float, float]] = {
    "initial_alpha": (1e-6, 1e3),
    "gamma": (0, 1),
    "target_entropy_share": (0, 1),
    "critic_warmup": (0, 10**9),
    "steps_per_update": (1, 10**6),
}
_OF_MODULE = ("initial_alpha", "impact_estimator")


@dataclass(frozen=True, slots=True, kw_only=True)
class SACSettings:
    """Hyperparameters of SAC; None: the algorithm's own."""

    initial_alpha: float | None = None
    """sac: weight of the entropy before training, in QoS; it is learned. Default: the temperature."""
    gamma: float | None = None
    """sac: discount of a decision, however long it lasts. Default: time is discounted instead, by .05 per second."""
    target_entropy_share: float | None = None
    """sac: target entropy as a share of that of a random choice among the possible actions. Default: .02."""
    critic_warmup: int | None = None
    """sac: optimizer steps of the critics before the actor learns. Default: 1,000."""
    centre_rewards: bool | None = None
    """sac: subtract the mean reward of each environment. Default: yes."""
    impact_estimator: bool = True
    """sac: an estimator learns the marginal QoS of all actions, and the critics what is beyond it. Without, critics learn all."""
    steps_per_update: int | None = None
    """sac: decisions for each optimizer step. Default: 32."""

    def __post_init__(self) -> None:
        """Refuse values that no training could use.

        Raises:
            InputError: one is out of range.
        """
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise InputError(f"{name.replace('_', '-')} = {value}: must be from {low:g} to {high:g}")

    def training(self) -> dict[str, Any]:
        """Those that are given, as keywords of ``RouterSACConfig.training``."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _OF_MODULE}
        given = {name: value for name, value in given.items() if value is not None}
        return given if self.gamma is None else given | {"beta": 0.0}
