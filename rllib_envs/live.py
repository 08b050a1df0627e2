"""The observation of a cluster that is not simulated: from what somebody in front of its engines sees.

The records, their readers and the roll-outs are those of the simulation. ``show`` is one step of it, with what was seen in place
of what the simulated engines did.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from rllib_envs.decision import step_all
from rllib_envs.observation import update_gap_ema
from rllib_envs.sim.demand import update_demand, update_late_ema
from rllib_envs.sim.jit import kernel
from rllib_envs.sim.seen import learn_steps, rebuild


@kernel
def show(world, rules, seen, me, marks, row, total, arrivals, gap_s, finished, late, actions, steps):
    """Write the observation of the one cluster for the request in row ``row`` of its table.

    Args:
        world: of one cluster; ``now_s`` is the time.
        rules: which parts to write.
        seen: what is seen of the requests in the rows before, and of those of other gateways.
        me: number of the gateway.
        marks: of the last observation.
        row: of the request to route.
        total: requests that have come before it, to all gateways.
        arrivals: requests that have come since the last observation, this one included.
        gap_s: mean time between them, from the one of the last observation on.
        finished: requests that have finished since then.
        late: those of them that missed their bounds.
        actions: (1,) BEGIN.
        steps: (1,) STEP, for nothing.
    """
    world.cursor[0] = row
    world.workload.total[0] = row + 1
    if row > 0:
        for _ in range(arrivals):
            update_gap_ema(world.pace, 0, total, gap_s)
        if rules.demand:
            slo_s = world.service.terms[world.workload.user[0, row].service].unit_s
            update_late_ema(world.demand, 0, finished, late)
            update_demand(world.demand, world.nominal, world.workload, 0, row, world.pace.gaps[0], slo_s)
    if rules.calibrate:
        learn_steps(world.state, world.calibration, seen, me, marks, world.now_s[0])
    rebuild(world.state, world.service.terms, world.nominal, seen, me, row, world.now_s[0])
    step_all(actions, steps, True, world, rules)
