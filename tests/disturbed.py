"""Small random clusters that change within an episode, with all kinds of changes at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from rllib_envs.dynamics import Blackouts, Dynamics, Failures, Neighbour, Outage, Patience, PowerMode, Throttling
from rllib_envs.scenario import Faults, Observation, Scenario
from rllib_envs.workload.disturbances import DYNAMIC_STREAMS, draw_disturbances
from rllib_envs.workload.episode import Episode
from tests.worlds import random_world


def random_dynamics(rng: np.random.Generator) -> Dynamics:
    """Each kind of change with even odds, at the scale of an episode of ``random_episode``: some seconds."""

    def odds() -> bool:
        return rng.random() < 0.5

    def scale(around: float) -> float:
        return max(0.1, float(around * np.exp(0.5 * rng.normal())))

    outages = [Outage(at_s=scale(1.0), for_s=scale(0.5), planned=True, experts=("e0",))] if odds() else []
    outages += [Outage(at_s=scale(1.5), for_s=scale(0.5), experts=("e1",))] if odds() else []
    return Dynamics(
        throttling=Throttling(time_constant_s=scale(0.5), every_s=0.1, from_heat=0.1, to_heat=0.6, slowest=2.0)
        if odds()
        else None,
        power_modes=(PowerMode(at_s=0.7, factor=1.5), PowerMode(at_s=1.9, factor=0.8)) if odds() else (),
        neighbour=Neighbour(mean_on_s=scale(0.4), mean_off_s=scale(0.4)) if odds() else None,
        failures=Failures(mtbf_s=scale(1.5), mttr_s=scale(0.3)) if odds() else None,
        outages=tuple(outages),
        detection_s=float(rng.choice([0.0, 0.05, 0.3])),
        retries=int(rng.integers(3)),
        patience=Patience(
            law="exponential" if odds() else "log-normal",
            first_token_s=scale(0.3) if odds() else None,
            total_s=scale(1.0) if odds() else None,
        )
        if odds()
        else None,
        blackouts=Blackouts(mean_gap_s=scale(0.5), mean_s=scale(0.3)) if odds() else None,
    )


def disturbed(scenario: Scenario, episode: Episode, rng: np.random.Generator) -> Episode:
    """The episode with changes drawn by the scenario's dynamics."""
    return replace(episode, disturbances=draw_disturbances(scenario, episode.arrival_s, dict.fromkeys(DYNAMIC_STREAMS, rng)))


def disturbed_world(
    rng: np.random.Generator, *, observation: Observation | None = None, several: bool = False, late: bool = False
) -> tuple[Scenario, Episode, NDArray[np.int64]]:
    """A random world that changes within its episode; decisions for all arrivals and all retries."""
    faults = Faults(telemetry_delay_s=0.07) if late else None
    scenario, episode, actions = random_world(rng, observation=observation, several=several, faults=faults)
    scenario = replace(scenario, dynamics=random_dynamics(rng))
    return scenario, disturbed(scenario, episode, rng), np.tile(actions, 3)
