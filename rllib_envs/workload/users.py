"""Who sends the requests of an episode, and from where: service class, tenant, site and the jitter of the network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from rllib_envs.scenario import Scenario
from rllib_envs.service import draw_service
from rllib_envs.sim.terms import users
from rllib_envs.workload.devices import draw_jitter, draw_sites

USER_STREAMS = ("classes", "tenants", "sites", "jitter")
"""Names of the streams of random numbers that ``draw_users`` takes."""


def draw_users(
    scenario: Scenario, arrival_s: NDArray[np.float64], streams: Mapping[str, np.random.Generator]
) -> NDArray[np.void]:
    """(M,) USER of requests that arrive at ``arrival_s`` (M,), ascending; ``streams``: a generator for each of USER_STREAMS."""
    count = arrival_s.size
    found = users(count)
    found["service"] = draw_service(scenario.classes, count, streams["classes"])
    found["tenant"] = draw_service(scenario.tenants, count, streams["tenants"])
    found["site"] = draw_sites(scenario.network, arrival_s, streams["sites"])
    found["jitter"] = draw_jitter(scenario.network, count, streams["jitter"])
    return found
