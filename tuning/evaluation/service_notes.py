"""What the tables of a scenario with service classes, tenants or a network are about: a paragraph for each."""

from __future__ import annotations

from collections.abc import Sequence

from rllib_envs.scenario import Scenario
from rllib_envs.service import ServiceClass, Tenant
from tuning.output.literal import printable

_BOUNDS = {
    "per_token_s": ("latency per token", 1e3, "ms"),
    "ttft_s": ("TTFT", 1, "s"),
    "tpot_s": ("TPOT", 1e3, "ms"),
    "e2e_s": ("end to end", 1, "s"),
}
"""Bound -> how it is called, and the factor to its unit."""


def notes_on_service(scenario: Scenario) -> list[str]:
    """A paragraph on the service classes, one on the tenants and one on the network, each only where there are any."""
    notes: list[str] = []
    if scenario.classes:
        shares = _shares(scenario.classes)
        parts = [
            f"{_title(entry, share)}: {_promise(entry, scenario)}" for entry, share in zip(scenario.classes, shares, strict=True)
        ]
        notes.append(
            f"Service classes: {'; '.join(parts)}. QoS is the weight times the score of an answer within all its bounds."
        )
    if scenario.tenants:
        parts = [
            _title(entry, share) + _confined(entry)
            for entry, share in zip(scenario.tenants, _shares(scenario.tenants), strict=True)
        ]
        notes.append(f"Tenants: {'; '.join(parts)}.")
    if scenario.network is not None:
        sites = ", ".join(printable(site.name) for site in scenario.network.sites)
        rtt_ms = [1e3 * link.rtt_s for link in scenario.network.links]
        notes.append(
            f"Users are at {sites}. Round trips to the experts take {min(rtt_ms):.3g} to {max(rtt_ms):.3g} ms in the mean and "
            "count in every latency."
        )
    return notes


def _shares(entries: Sequence[ServiceClass | Tenant]) -> list[float]:
    total = sum(entry.share for entry in entries)
    return [entry.share / total for entry in entries]


def _title(entry: ServiceClass | Tenant, share: float) -> str:
    return f"{printable(entry.name)} ({100 * share:.3g} %)"


def _promise(entry: ServiceClass, scenario: Scenario) -> str:
    given = {name: bound for name in _BOUNDS if (bound := getattr(entry, name)) is not None}
    bounds = given or {"per_token_s": scenario.slo_s_per_token}
    shown = [f"{title} {factor * bounds[name]:.3g} {unit}" for name, (title, factor, unit) in _BOUNDS.items() if name in bounds]
    return f"{', '.join(shown)}, weight {entry.weight:.3g}{_confined(entry)}"


def _confined(entry: ServiceClass | Tenant) -> str:
    return f", only to {', '.join(map(printable, entry.confined_to))}" if entry.confined_to else ""
