"""Small scenarios that reach every corner of the world within a few hundred requests."""

from __future__ import annotations

from dataclasses import replace

from rllib_envs.scenario import Faults, Observation, Scenario, with_workload
from rllib_envs.scenarios.load import load_scenario


def small(name: str = "edge6", requests: int = 60, load: float | str = 24.0) -> Scenario:
    """A preset with short episodes; its capacity is stated, so that nothing is measured."""
    return replace(with_workload(load_scenario(name), requests=requests, load=load), capacity_rps=24.0)


def kv_tight(scenario: Scenario) -> Scenario:
    """The scenario with engines that hold three long requests at most: preemptions and blocked queues."""
    return replace(
        scenario,
        name=f"{scenario.name}-kv-tight",
        experts=tuple(
            replace(
                x,
                engine=replace(
                    x.engine, kv_tokens=3100, max_model_len=1024, max_num_seqs=16, max_num_batched_tokens=256, max_waiting=12
                ),
            )
            for x in scenario.experts
        ),
    )


def everything(scenario: Scenario) -> Scenario:
    """The scenario with what-if results and counterfactuals."""
    return replace(scenario, observation=Observation(running_slots=4, waiting_slots=2, whatif=True, counterfactual=True))


WORLDS = {
    "edge6": small(),
    "paper3": small("paper3"),
    "edge3": small("edge3"),
    "everything": everything(small()),
    "kv-tight": kv_tight(everything(small(load=40.0))),
    "late": replace(everything(small()), faults=Faults(telemetry_delay_s=0.5, engine_coefficient_factor=1.4)),
}
