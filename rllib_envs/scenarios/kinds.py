"""Kinds of drawn worlds: what a drawn cluster has beside its engines: service classes, sites, private requests, changes.

A kind takes a drawn scenario and a generator of its own, so that the draws of a world stay the same whatever kind it becomes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from rllib_envs.dynamics import Blackouts, Dynamics, Failures, Patience, Throttling
from rllib_envs.errors import InputError
from rllib_envs.expert import Expert
from rllib_envs.network import Link, Network, Site
from rllib_envs.scenario import Scenario
from rllib_envs.service import ServiceClass, Tenant

Kind = Callable[[Scenario, np.random.Generator], Scenario]
"""Makes a world of its kind from a drawn scenario and a source of draws."""

PLAIN_KIND = "plain"
"""The kind that leaves a drawn scenario as it is."""

_CLOUD, _INSIDE = "cloud", "inside"  # a site, a label
_HASTE = (0.8, 2.5)  # bound on the latency per token, or on the whole time, over what the scenario allows
_PATIENCE = (1.0, 5.0)  # mean patience over the time that the scenario allows a mean answer
_FIRST = (0.03, 0.3)  # bound on the first token over the time that the scenario allows a mean answer


def with_classes(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """Add two to four service classes, whose weights are 1 in the mean over requests.

    A class has a bound per token, on the whole time, or on both the first token and the tokens after it, in proportion to the
    scenario's. In every other world engines schedule by priority.
    """
    mean_tokens = float(np.mean([expert.mean_output_tokens for expert in scenario.experts]))
    slo_s, count = scenario.slo_s_per_token, int(rng.integers(2, 5))
    share = rng.uniform(0.1, 1.0, count)
    weight = np.exp(rng.uniform(math.log(0.5), math.log(2.0), count))
    weight /= share @ weight / share.sum()
    classes: list[ServiceClass] = []
    for i in range(count):
        haste, first = _log_uniform(rng, *_HASTE), _log_uniform(rng, *_FIRST)
        per_token_s, whole_s = _round(haste * slo_s), _round(haste * slo_s * mean_tokens)
        first_s = _round(first * slo_s * mean_tokens)
        of = int(rng.integers(3))
        classes.append(
            ServiceClass(
                name=f"class-{i + 1}",
                share=_round(share[i]),
                weight=_round(weight[i]),
                priority=int(rng.integers(3)),
                per_token_s=per_token_s if of == 0 else None,
                e2e_s=whole_s if of == 1 else None,
                ttft_s=first_s if of == 2 else None,
                tpot_s=per_token_s if of == 2 else None,
            )
        )
    if rng.random() < 0.5:
        experts = tuple(replace(expert, engine=replace(expert.engine, scheduling="priority")) for expert in scenario.experts)
        scenario = replace(scenario, experts=experts)
    return replace(scenario, classes=tuple(classes))


def with_sites(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """Put users and experts at two to four sites; in every other world the best expert is in a cloud, 40 to 150 ms away."""
    names = [f"site-{i + 1}" for i in range(int(rng.integers(2, 5)))]
    sites = tuple(Site(name=name, share=_round(rng.uniform(0.1, 1.0))) for name in names)
    places = [str(rng.choice(names)) for _ in scenario.experts]
    if rng.random() < 0.5:
        places[int(np.argmax([expert.mean_score for expert in scenario.experts]))] = _CLOUD
    links = tuple(_link(users, experts, rng) for users in names for experts in (*names, _CLOUD))
    network = Network(
        sites=sites,
        links=links,
        jitter_log_sd=_round(rng.uniform(0.0, 0.5)),
        devices=int(rng.integers(20, 1000)),
        stay_s=_round(_log_uniform(rng, 60.0, 3600.0)),
    )
    return replace(scenario, experts=_changed(scenario.experts, [{"site": place} for place in places]), network=network)


def with_private(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """Confine a tenant with a tenth to a half of the requests to some of the experts: a third of them or more."""
    n = scenario.n_experts
    inside = rng.permutation(n)[: int(rng.integers(max(n // 3, 1), n))]
    labels = [(*expert.labels, _INSIDE) if i in inside else expert.labels for i, expert in enumerate(scenario.experts)]
    share = _round(rng.uniform(0.1, 0.5))
    tenants = (Tenant(name="open", share=_round(1 - share)), Tenant(name="private", share=share, confined_to=(_INSIDE,)))
    return replace(scenario, experts=_changed(scenario.experts, [{"labels": own} for own in labels]), tenants=tenants)


def with_changes(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """Let engines get hot, experts fail, clients give up and telemetry stop: each in every other world, one of them at least.

    Times are drawn about those of ``rllib_envs.dynamics``. Patience is in proportion to what the scenario allows a mean answer.
    """
    mean_tokens = float(np.mean([expert.mean_output_tokens for expert in scenario.experts]))
    allowed_s = scenario.slo_s_per_token * mean_tokens
    throttling = Throttling(slowest=_round(rng.uniform(1.2, 2.0)), time_constant_s=_round(_log_uniform(rng, 15.0, 120.0)))
    failures = Failures(mtbf_s=_round(_log_uniform(rng, 60.0, 600.0)), mttr_s=_round(_log_uniform(rng, 5.0, 60.0)))
    total_s = _log_uniform(rng, *_PATIENCE) * allowed_s
    patience = Patience(first_token_s=_round(rng.uniform(0.2, 0.8) * total_s), total_s=_round(total_s))
    blackouts = Blackouts(mean_gap_s=_round(_log_uniform(rng, 20.0, 200.0)), mean_s=_round(_log_uniform(rng, 3.0, 30.0)))
    has = rng.random(4) < 0.5
    has[rng.integers(4)] = True
    dynamics = Dynamics(
        throttling=throttling if has[0] else None,
        failures=failures if has[1] else None,
        patience=patience if has[2] else None,
        blackouts=blackouts if has[3] else None,
        retries=int(rng.integers(3)),
    )
    return replace(scenario, dynamics=dynamics)


def _edge(scenario: Scenario, rng: np.random.Generator) -> Scenario:
    """Classes, sites and private requests together."""
    return with_private(with_sites(with_classes(scenario, rng), rng), rng)


KINDS: Mapping[str, Kind] = {
    PLAIN_KIND: lambda scenario, rng: scenario,
    "classes": with_classes,
    "sites": with_sites,
    "private": with_private,
    "edge": _edge,
    "changing": with_changes,
}
"""Kinds by name. A new one goes to the end: a world's draws depend on its place."""


def of_kind(name: str, scenario: Scenario, seed: Sequence[int]) -> Scenario:
    """The scenario as a world of this kind, whose draws depend on the seed and the kind alone."""
    return KINDS[name](scenario, np.random.default_rng([*seed, list(KINDS).index(name)]))


def check_kinds(names: Sequence[str], field: str = "kinds") -> tuple[str, ...]:
    """The kinds, each once; ``field`` is how messages call them.

    Raises:
        InputError: none, or one that does not exist.
    """
    if not names:
        raise InputError(f"{field} = (): allowed are {', '.join(KINDS)}")
    for name in names:
        if name not in KINDS:
            raise InputError(f"{field} = {name!r}: allowed are {', '.join(KINDS)}")
    return tuple(dict.fromkeys(names))


def _link(users: str, experts: str, rng: np.random.Generator) -> Link:
    """A round trip within a site, between sites, or to the cloud; in every other one prompts take time to travel."""
    low, high = (0.5e-3, 5e-3) if users == experts else (0.04, 0.15) if experts == _CLOUD else (5e-3, 0.04)
    rtt_s, mbit_per_s = _round(_log_uniform(rng, low, high)), _round(_log_uniform(rng, 2.0, 200.0))
    return Link(users=users, experts=experts, rtt_s=rtt_s, mbit_per_s=mbit_per_s if rng.random() < 0.5 else None)


def _changed(experts: Sequence[Expert], changes: Sequence[Mapping[str, object]]) -> tuple[Expert, ...]:
    return tuple(replace(expert, **change) for expert, change in zip(experts, changes, strict=True))


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(math.log(low), math.log(high))))


def _round(value: float) -> float:
    """Three significant digits, as in the drawn fleets."""
    return float(f"{value:.3g}")
