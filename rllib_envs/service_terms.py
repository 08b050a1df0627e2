"""A scenario's service classes and tenants as the tables that compiled code reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rllib_envs.scenario import Scenario
from rllib_envs.service import ServiceClass, Tenant
from rllib_envs.sim.terms import NO_BOUND_S, Service, per_token_terms

_PROMPT_BITS = 8 * 4.5  # of a token: some four and a half bytes of text


def service_of(scenario: Scenario) -> Service:
    """What the scenario promises, where requests may go, and how far that is."""
    round_trip_s, prompt_s = link_times(scenario)
    return Service(terms_of(scenario), allowed_experts(scenario), round_trip_s, prompt_s)


def link_times(scenario: Scenario) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(S, N) mean round trip and time for each prompt token, seconds, from each site to each expert; zeros without a network."""
    network = scenario.network
    if network is None:
        return np.zeros((1, scenario.n_experts)), np.zeros((1, scenario.n_experts))
    links = {(link.users, link.experts): link for link in network.links}
    pairs = [[links[site.name, expert.site or ""] for expert in scenario.experts] for site in network.sites]
    round_trip_s = np.array([[link.rtt_s for link in row] for row in pairs])
    prompt_s = np.array([[_PROMPT_BITS / (1e6 * (link.mbit_per_s or np.inf)) for link in row] for row in pairs])
    return round_trip_s, prompt_s


def experts_at_sites(scenario: Scenario) -> NDArray[np.bool_]:
    """(S, N) whether an expert is at a site of users; nowhere without a network."""
    if scenario.network is None:
        return np.zeros((1, scenario.n_experts), np.bool_)
    return np.array([[expert.site == site.name for expert in scenario.experts] for site in scenario.network.sites])


def terms_of(scenario: Scenario) -> NDArray[np.void]:
    """(C,) TERMS of the scenario's service classes; of one with the scenario's bound if it has none."""
    common = per_token_terms(scenario.slo_s_per_token)
    if not scenario.classes:
        return common
    terms = np.repeat(common, len(scenario.classes))
    mean_tokens = float(np.mean([expert.mean_output_tokens for expert in scenario.experts]))
    for record, entry in zip(terms, scenario.classes, strict=True):
        record["weight"], record["priority"] = entry.weight, entry.priority
        bounds = {"slo_s": entry.per_token_s, "ttft_s": entry.ttft_s, "tpot_s": entry.tpot_s, "e2e_s": entry.e2e_s}
        given = {name: bound for name, bound in bounds.items() if bound is not None} or {"slo_s": scenario.slo_s_per_token}
        for name in bounds:
            record[name] = given.get(name, NO_BOUND_S)
        per_token_s = [given[name] for name in ("slo_s", "tpot_s") if name in given]
        if "e2e_s" in given:
            per_token_s.append(given["e2e_s"] / mean_tokens)
        record["unit_s"] = min(per_token_s, default=scenario.slo_s_per_token)
    return terms


def allowed_experts(scenario: Scenario) -> NDArray[np.bool_]:
    """(C, T, N) whether requests of a service class and a tenant may go to an expert."""
    places = [{expert.name, expert.site, *expert.labels} for expert in scenario.experts]
    by_class, by_tenant = (_allowed(part, places) for part in (scenario.classes, scenario.tenants))
    return by_class[:, None] & by_tenant[None]


def _allowed(entries: Sequence[ServiceClass | Tenant], places: Sequence[set[str | None]]) -> NDArray[np.bool_]:
    """(entries, N), or (1, N) for none."""
    rows = [[not entry.confined_to or not place.isdisjoint(entry.confined_to) for place in places] for entry in entries]
    return np.array(rows or [[True] * len(places)])
