"""Where a request may go: what its class, its tenant and it itself allow. No policy is asked, and none can widen it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gateway.request import RouteRequest
from rllib_envs.scenario import Scenario
from rllib_envs.service_terms import allowed_experts


class Confinement:
    """The experts that requests may go to.

    Args:
        scenario: its classes and tenants say where theirs are confined to.
    """

    def __init__(self, scenario: Scenario) -> None:
        self._allowed = allowed_experts(scenario)
        self._tenants = {tenant.name: i for i, tenant in enumerate(scenario.tenants)}
        self._everywhere = allowed_experts(replace(scenario, tenants=()))[:, 0]  # of nobody's requests

    def of(self, request: RouteRequest) -> NDArray[np.bool_]:
        """(N,) the experts that a request may go to.

        Raises:
            ValueError: no such class, tenant or expert, or ``allowed`` has another number of experts.
        """
        classes, _, n = self._allowed.shape
        if not 0 <= request.service < classes:
            raise ValueError(f"service = {request.service}: must be from 0 to {classes - 1}")
        if request.tenant and request.tenant not in self._tenants:
            raise ValueError(f"tenant = {request.tenant!r}: no such tenant")
        own = (
            self._allowed[request.service, self._tenants[request.tenant]] if request.tenant else self._everywhere[request.service]
        )
        if request.allowed is not None:
            if len(request.allowed) != n:
                raise ValueError(f"allowed has {len(request.allowed)} entries: must have one for each of the {n} experts")
            own = own & np.array(request.allowed, np.bool_)
        if request.pinned is not None:
            if not 0 <= request.pinned < n:
                raise ValueError(f"pinned = {request.pinned}: must be from 0 to {n - 1}")
            own = own & (np.arange(n) == request.pinned)
        return own
