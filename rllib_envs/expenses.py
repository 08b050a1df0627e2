"""What a cluster spends: energy by the watts of its experts, and money by their prices."""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.scenario import Scenario
from rllib_envs.sim.jit import kernel
from rllib_envs.sim.plan import busy_until
from rllib_envs.sim.state import CANCELLED, FINISHED, ROUTED

_TARIFF = np.dtype(
    [
        ("idle_w", "f8"), ("active_w", "f8"),
        ("prompt_price", "f8"), ("output_price", "f8"),  # of a token
    ],
    align=True,
)  # fmt: skip


class Meter(NamedTuple):
    """The figures of the experts, and what was read off at the last decision."""

    tariff: NDArray[np.void]  # (N,)
    energy_j: NDArray[np.float64]  # (B,) since time 0
    billed: NDArray[np.int32]  # (B,) requests whose price has been counted


def meter_of(scenario: Scenario, batch: int) -> Meter | None:
    """The meter of B clusters at time 0; None where no expert has watts or a price."""
    if not (scenario.has_watts or scenario.has_prices):
        return None
    tariff = np.array(
        [(e.idle_w, e.active_w, 1e-6 * e.prompt_price, 1e-6 * e.output_price) for e in scenario.experts], dtype=_TARIFF
    )
    return Meter(tariff=tariff, energy_j=np.zeros(batch), billed=np.zeros(batch, np.int32))


def reset_meter(meter: Meter, cluster: int) -> None:
    """Begin an episode in one cluster."""
    meter.energy_j[cluster] = 0.0
    meter.billed[cluster] = 0


@kernel
def meter_all(state, cursor, now_s, meter, steps):
    """Credit the step (B,) STEP that each cluster has just taken with its energy and cost.

    Energy is that of all experts since the last decision, or since time 0 in the first step: idle watts all the time, and the
    rest up to the active watts while an iteration runs. Cost is that of all tokens of the request that was sent, known only when
    it has finished, but decided here. A client that gives up later gets none of it back. A cluster whose episode is over spends
    nothing.
    """
    for b in range(steps.size):
        energy_j = 0.0
        for e in range(meter.tariff.size):
            watts = meter.tariff[e]
            energy_j += watts.idle_w * now_s[b] + (watts.active_w - watts.idle_w) * busy_until(state.experts[b, e], now_s[b])
        steps[b].energy_j = energy_j - meter.energy_j[b]
        meter.energy_j[b] = energy_j
        r = meter.billed[b]
        if r < cursor[b]:
            request, record = state.requests[b, r], state.records[b, r]
            if record.status in (ROUTED, FINISHED, CANCELLED):
                price = meter.tariff[record.route]
                steps[b].cost = price.prompt_price * request.prompt + price.output_price * request.output
            meter.billed[b] = cursor[b]
