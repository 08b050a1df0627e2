"""Random draws per episode: its faults, their size, and whether its arrivals are bursty."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import chain

import numpy as np

from rllib_envs.scenario import Faults, Scenario

FAULT_KINDS: tuple[tuple[str, ...], ...] = (
    ("engine_factor",),
    ("engine_expert_log_sd",),
    ("engine_coefficient_factor",),
    ("kv_factor",),
    ("telemetry_delay_s",),
    ("length_factor",),
    ("length_log_sd",),
    ("hidden_share", "hidden_factor"),
    ("score_sd",),
)
"""Kinds of faults, each with the fields of ``Faults`` or ``Predictions`` that it sets."""

_FIGURES = tuple(chain.from_iterable(FAULT_KINDS))
_OF_FAULTS = {field.name for field in fields(Faults)}


def vary(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """The environment variant of one episode: a scenario without variation, drawn by ``scenario.variation`` or unchanged.

    The number of draws is always the same, whatever the settings. So episodes of the same seed under different ranges have the
    same faults at the same quantiles.
    """
    variation = scenario.variation
    if variation is None:
        return scenario
    faulty, bursty = rng.random(2) < (variation.fault_share, variation.burst_share)
    burst_quantile = rng.random()
    active = rng.random(len(FAULT_KINDS)) < variation.each
    last_resort = int(rng.integers(len(FAULT_KINDS)))
    quantiles = dict(zip(_FIGURES, rng.random(len(_FIGURES)), strict=True))
    changed = replace(scenario, variation=None)
    if bursty:
        ratio = _between(variation.burst_ratio, burst_quantile, even_in_log=True)
        arrivals = replace(scenario.workload.arrivals, kind="mmpp", burst_ratio=ratio, parameters=())
        changed = replace(changed, workload=replace(scenario.workload, arrivals=arrivals))
    if not faulty:
        return changed
    if not active.any():
        active[last_resort] = True
    names = chain.from_iterable(kind for kind, on in zip(FAULT_KINDS, active, strict=True) if on)
    drawn = {name: _between(getattr(variation, name), quantiles[name], name.endswith("_factor")) for name in names}
    return replace(
        changed,
        faults=replace(scenario.faults, **{name: value for name, value in drawn.items() if name in _OF_FAULTS}),
        predictions=replace(scenario.predictions, **{name: value for name, value in drawn.items() if name not in _OF_FAULTS}),
    )


def _between(limits: tuple[float, float], quantile: float, even_in_log: bool) -> float:
    """The quantile of the uniform, or log-uniform, distribution between the limits."""
    low, high = limits
    value = low * (high / low) ** quantile if even_in_log else low + (high - low) * quantile
    return float(min(max(value, low), high))  # rounding must not leave the range
