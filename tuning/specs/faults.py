"""Faults by name: one difference each between the actual world and what the router assumes.

Requests, arrivals and rates stay those of the scenario without the fault, seed by seed. A rate that is a share of the capacity
refers to the capacity of the nominal engines.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from typing import Any

from rllib_envs.dynamics import Blackouts, Dynamics, Failures, Patience, Throttling
from rllib_envs.errors import InputError
from rllib_envs.scenario import Faults, Scenario
from tuning.specs.grammar import nearest

NO_FAULT = "none"
UNCONFINED = "unconfined"
"""No fault, but a world to compare with: every request may go to every expert. The difference is what confinement costs."""

FAULTS: dict[str, dict[str, float]] = {
    NO_FAULT: {},
    "engine-fast": {"engine_factor": 0.75},  # iterations take 0.75 of the nominal time
    "engine-slow": {"engine_factor": 1.25},
    "engine-mixed": {"engine_expert_log_sd": 0.25},  # the same, but a log-normal factor for each expert and episode
    "engine-coefficients": {"engine_coefficient_factor": 1.4},  # each coefficient times or over 1.4, at random
    "lengths-short": {"length_factor": 0.6},  # median ratio of predicted to true length: answers run longer
    "lengths-long": {"length_factor": 1.6},
    "lengths-hidden": {"hidden_share": 0.3, "hidden_factor": 2.5},  # 3 requests in 10 run 2.5 times as long as predicted
    "score-noise": {"score_sd": 0.2},  # of oracle-noise: twice its usual error of scores; of others: beyond their own
    "late-telemetry": {"telemetry_delay_s": 0.5},
    "kv-tight": {
        "kv_factor": 0.35
    },  # of the KV blocks, known to the router: at moderate load edge6 preempts several times as often
    "throttle": {},  # see CHANGES, as for the next three
    "churn": {},
    "impatient": {},
    "blackout": {},
    UNCONFINED: {},
}
"""Name -> fields of ``Faults`` and ``Predictions`` and the values that they get; ``UNCONFINED`` changes who may go where."""

CHANGES: dict[str, dict[str, Any]] = {
    "throttle": {"throttling": Throttling()},  # of every engine: slowest after some 105 s of work
    "churn": {"failures": Failures()},  # each expert fails every 120 s and returns after 20 s, in the mean
    "impatient": {"patience": Patience(first_token_s=5.0, total_s=30.0)},  # means, log-normal
    "blackout": {"blackouts": Blackouts()},  # of each expert's telemetry: 10 s in every 70 s, in the mean
}
"""Name -> fields of ``Dynamics`` and the values that they get: what changes within each episode."""

_OF_FAULTS = {field.name for field in fields(Faults)}


def parse_faults(texts: Iterable[str]) -> list[str]:
    """Parse names in order, without duplicates; ``all`` stands for every fault but ``none`` and ``unconfined``.

    Raises:
        InputError: unknown name, with the nearest ones.
    """
    everyone = [name for name in FAULTS if name not in (NO_FAULT, UNCONFINED)]
    names = [name for text in texts for name in (everyone if text == "all" else [text])]
    for name in names:
        if name not in FAULTS:
            raise InputError(f"fault {name!r}: unknown; {nearest(name, FAULTS)} (or all)")
    return list(dict.fromkeys(names))


def with_fault(scenario: Scenario, name: str) -> Scenario:
    """Put the fault into every episode, in place of the scenario's ``variation``; ``none`` only removes that."""
    values = FAULTS[name]
    if name == UNCONFINED:
        free = {part: tuple(replace(x, confined_to=()) for x in getattr(scenario, part)) for part in ("classes", "tenants")}
        scenario = replace(scenario, **free)
    return replace(
        scenario,
        variation=None,
        faults=replace(scenario.faults, **{key: value for key, value in values.items() if key in _OF_FAULTS}),
        predictions=replace(scenario.predictions, **{key: value for key, value in values.items() if key not in _OF_FAULTS}),
        dynamics=replace(scenario.dynamics or Dynamics(), **CHANGES[name]) if name in CHANGES else scenario.dynamics,
    )


def describe_fault(name: str) -> str:
    """The fields that a fault sets, with their values, for a report."""
    if name == UNCONFINED:
        return f"{name} (every request may go to every expert)"
    values = dict(FAULTS[name])
    for part in CHANGES.get(name, {}).values():
        values |= {key: value for key, value in asdict(part).items() if isinstance(value, float)}
    return f"{name} ({', '.join(f'{key} = {value:g}' for key, value in values.items()) or 'the scenario as it is'})"
