"""Who sends the requests of an episode, and from where: service class, tenant, site and the jitter of the network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rllib_envs.scenario import Scenario
from rllib_envs.service import draw_service
from rllib_envs.sim.terms import users
from rllib_envs.workload.devices import draw_jitter, draw_sites
from rllib_envs.workload.given_classes import GivenClasses

USER_STREAMS = ("classes", "tenants", "sites", "jitter")
"""Names of the streams of random numbers that ``draw_users`` takes."""


def draw_users(
    scenario: Scenario,
    arrival_s: NDArray[np.float64],
    streams: Mapping[str, np.random.Generator],
    classes: GivenClasses | None = None,
) -> NDArray[np.void]:
    """Draw who sends the requests of an episode.

    Args:
        scenario: its classes, tenants and network.
        arrival_s: (M,) ascending.
        streams: a generator for each of USER_STREAMS.
        classes: service classes that came with the arrivals; None: drawn by the shares.

    Returns:
        (M,) USER.

    Raises:
        InputError: a class that came with the arrivals is none of the scenario's.
    """
    count = arrival_s.size
    found = users(count)
    drawn = draw_service(scenario.classes, count, streams["classes"])
    found["service"] = drawn if classes is None else classes.among(scenario.classes)
    found["tenant"] = draw_service(scenario.tenants, count, streams["tenants"])
    found["site"] = draw_sites(scenario.network, arrival_s, streams["sites"])
    found["jitter"] = draw_jitter(scenario.network, count, streams["jitter"])
    return found
