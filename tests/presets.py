"""A preset as most tests want it."""

from __future__ import annotations

from dataclasses import replace

from rllib_envs.scenario import Scenario, with_workload
from rllib_envs.scenarios.load import load_scenario


def short_edge6() -> Scenario:
    """The preset edge6 with short episodes; its capacity is stated, so that nothing is measured."""
    return replace(with_workload(load_scenario("edge6"), requests=60, load=24.0), capacity_rps=24.0)
