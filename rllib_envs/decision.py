"""A decision's way through the world of B clusters: its phases, in order.

========================  =====================================================================================================
``marginal_qos``          counterfactual of the action taken, where the reward asks for it
``route``                 the request goes to an expert's queue, or to none
``advance_to_next``       time passes to the next arrival; what finishes is credited to the step
``sync_telemetry``        the cluster as the router sees it then, which may be late
``update_calibration``    the router corrects its figures by what it sees (calibration)
``observe``               rows of the experts, their requests and the cluster
``predict``               what-if result of each action, as far as the router knows
``true_marginals``        counterfactual of each action, with the truth: a target for training
========================  =====================================================================================================

``decide`` goes through the first three, ``write_observation`` through the rest. A phase takes what those before it left and
writes its own records; none reaches back.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.observation import Pace, describe_engines, observe, update_gap_ema
from rllib_envs.sim.calibration import Calibration, update_calibration
from rllib_envs.sim.cluster import (
    RequestTable,
    advance_to_next,
    clear_step,
    fits_none,
    marginal_qos,
    route,
    sync_telemetry,
    true_marginals,
)
from rllib_envs.sim.jit import borrow, kernel, kernel_inlined
from rllib_envs.sim.state import State
from rllib_envs.sim.whatif import Scratch, predict
from rllib_envs.view import ObservationRows


class World(NamedTuple):
    """Everything that the compiled step touches."""

    state: State
    late: State  # what telemetry shows, where it is late; else the state itself
    nominal: NDArray[np.void]  # (B, N) ENGINE, as the router was told, corrected by the calibration where that is asked for
    calibration: Calibration
    workload: RequestTable
    cursor: NDArray[np.int32]  # (B,) number of the request to route
    late_cursor: NDArray[np.int32]  # (B,) the same for ``late``
    delay_s: NDArray[np.float64]  # (B,) age of telemetry
    now_s: NDArray[np.float64]  # (B,)
    pace: Pace
    scratch: Scratch
    rows: ObservationRows  # the observations
    marginal: NDArray[np.float64]  # (B, N+1)


class Rules(NamedTuple):
    """The scenario's figures that the compiled step needs."""

    slo_s: float
    tau: float
    predict: bool  # write the what-if results
    track_future: int  # counterfactuals: 0 none, 1 of the action taken, 2 of all
    calibrate: bool  # learn from telemetry how far the figures are off


@kernel_inlined
def decide(world, rules, b, action, step):
    """Carry out one decision of cluster b (an expert's index, or N = drop), up to the next arrival; ``step``: what came of it."""
    state, workload, r, now_s = world.state, world.workload, world.cursor[b], world.now_s[b]
    marginal = 0.0
    if rules.track_future > 0 and action < state.experts.shape[1] and not fits_none(state.engines, b, workload.prompt[b, r]):
        if rules.track_future == 1:
            marginal = marginal_qos(state, workload, b, r, action, now_s, world.scratch, rules.slo_s)
        else:
            marginal = world.marginal[b, action]
    route(state, workload, b, r, action, now_s, marginal, step)
    advance_to_next(state, workload, world.cursor, world.now_s, b, rules.slo_s, step)
    if world.cursor[b] < workload.total[b]:
        update_gap_ema(world.pace, b, world.cursor[b], step.dt_s)


@kernel_inlined
def write_observation(world, rules, b):
    """Write the observation of cluster b, the what-if results and the counterfactuals where asked for."""
    workload, nominal, rows = world.workload, world.nominal, world.rows
    telemetry = sync_telemetry(
        world.state, world.late, world.cursor, world.late_cursor, world.delay_s, world.now_s, b, rules.slo_s
    )
    if rules.calibrate:
        update_calibration(world.calibration, nominal, telemetry, b)
    if rules.calibrate or telemetry.arrived == 0:
        describe_engines(nominal, world.calibration.records, b, rules.slo_s, rows.experts)
    observe(telemetry, nominal, workload, world.pace, b, rules.slo_s, rows)
    if rules.predict:
        predict(telemetry, nominal, workload, b, world.scratch, rules.slo_s, rules.tau, rows.whatif)
    if rules.track_future == 2:
        true_marginals(
            world.state, workload, b, telemetry.arrived, telemetry.now_s, world.scratch, rules.slo_s, world.marginal[b]
        )


@kernel
def write_observations(only, world, rules):
    """``write_observation`` at the clusters of the mask ``only``, (B,)."""
    world = borrow(world)
    for b in range(only.size):
        if only[b]:
            write_observation(world, rules, b)


@kernel
def step_all(actions, steps, show, world, rules):
    """One decision in every cluster that has a request to route, then its next observation."""
    world = borrow(world)
    for b in range(actions.size):
        if world.cursor[b] == world.workload.total[b]:
            clear_step(steps[b])
            continue
        decide(world, rules, b, actions[b], steps[b])
        if show:
            write_observation(world, rules, b)
