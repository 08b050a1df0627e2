"""Measure the load that a scenario's cluster can carry.

An expert's capacity is the largest Poisson rate at which it, alone, finishes 90 % of its requests within the SLO. Named loads
(light, moderate, heavy) are fractions of the sum over the experts, unless the scenario states another figure.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rllib_envs.capacity import IN_TIME, expert_capacities
from rllib_envs.scenario import LOAD_FRACTIONS, Scenario
from rllib_envs.scenarios.load import load_scenario
from tuning.output.tables import markdown_table
from tuning.run_dir.atomic import write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    scenario: str = "edge6"
    """Scenario: a preset (edge6, edge6-sites, paper3, balance13, edgeN with N from 2 to 256) or a YAML file."""
    out: Path | None = None
    """JSON file to write the figures to."""


def run(options: Options) -> None:
    """Measure, print, and write the file asked for.

    Raises:
        InputError: no such scenario; the file cannot be written.
    """
    scenario = load_scenario(options.scenario)
    report = capacity_report(scenario)
    rows = [[e["name"], e["gpu"], f"{e['capacity_rps']:.3f}"] for e in report["experts"]]
    rows.append(["sum", "", f"{report['measured_rps']:.3f}"])
    print(markdown_table(["expert", "GPU", "requests/s"], rows, names=2))
    print(
        f"\nEach alone, Poisson arrivals, {IN_TIME:.0%} of the requests within {1e3 * scenario.slo_s_per_token:g} ms per token."
    )
    if scenario.capacity_rps is not None:
        print(f"The scenario states {scenario.capacity_rps:g} requests/s; named loads are fractions of that.")
    print("Loads: " + ", ".join(f"{name} {rate:.2f}/s" for name, rate in report["loads_rps"].items()))
    if options.out is not None:
        write_json(options.out, report)


def capacity_report(scenario: Scenario) -> dict[str, Any]:
    """The measured figures, the one stated (None: none), and the named loads, all in requests/s."""
    capacities = expert_capacities(scenario)
    measured = float(capacities.sum())
    used = measured if scenario.capacity_rps is None else scenario.capacity_rps
    return {
        "scenario": scenario.name,
        "fingerprint": scenario.fingerprint(),
        "slo_s_per_token": scenario.slo_s_per_token,
        "share_in_time": IN_TIME,
        "experts": [
            {"name": e.name, "gpu": e.gpu, "model": e.model, "capacity_rps": float(rate)}
            for e, rate in zip(scenario.experts, capacities, strict=True)
        ],
        "measured_rps": measured,
        "stated_rps": scenario.capacity_rps,
        "loads_rps": {name: fraction * used for name, fraction in LOAD_FRACTIONS.items()},
    }
