"""The phases of one decision in B clusters, in order.

========================  =====================================================================================================
``marginal_qos``          counterfactual of the action taken, if the reward uses it
``route``                 the request goes to an expert's queue, or is dropped
``advance_to_next``       time advances to the next arrival; requests that finish are credited to the step
``sync_telemetry``        the router's view of the cluster at that time, possibly delayed
``update_calibration``    the router corrects its figures by its observations (calibration)
``observe``               rows of the experts, their requests and the cluster
``write_worth``           what predictions are worth, if the observation has it
``write_places``          how far each expert is from the user, if the observation has it
``predict``               predicted what-if result of each action, from the router's information
``write_demand``          what late requests need, if the observation has it
``true_marginals``        true counterfactual of each action: a training target
========================  =====================================================================================================

``decide`` runs the first three phases, ``write_observation`` the rest. A phase reads the records of earlier phases and writes its
own. No phase changes those of an earlier one.
"""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rllib_envs.observation import Pace, describe_engines, observe, update_gap_ema, write_places
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
from rllib_envs.sim.demand import Demand, update_demand, update_foreseen_ema, update_late_ema, write_demand
from rllib_envs.sim.jit import borrow, kernel, kernel_inlined
from rllib_envs.sim.living import advance_living, begin_living, follow, hold, note_sent, renew_future_qos
from rllib_envs.sim.state import FOLLOWED, HELD, State, Views
from rllib_envs.sim.terms import Service, extras_of
from rllib_envs.sim.whatif import Scratch, predict
from rllib_envs.sim.worth import Worth, write_worth
from rllib_envs.view import ObservationRows

BEGIN = -1
"""In place of an action: nothing is decided, as the episode begins."""
WAIT = -2
"""In place of an action: the cluster is left as it is."""


class World(NamedTuple):
    """All data that the compiled step uses."""

    state: State
    late: State  # the state that delayed telemetry shows; without a delay, the state itself
    nominal: NDArray[np.void]  # (B, N) ENGINE, the nominal engines, corrected by the calibration if it is on
    calibration: Calibration
    workload: RequestTable
    cursor: NDArray[np.int32]  # (B,) number of the request to route
    views: Views  # how telemetry shows the experts
    delay_s: NDArray[np.float64]  # (B,) age of telemetry
    now_s: NDArray[np.float64]  # (B,)
    pace: Pace
    worth: Worth
    demand: Demand
    scratch: Scratch
    rows: ObservationRows  # the observations
    marginal: NDArray[np.float64]  # (B, N+1)
    service: Service
    at_site: NDArray[np.bool_]  # (S, N) whether an expert is at a site of users


class Rules(NamedTuple):
    """The scenario's figures that the compiled step needs."""

    tau: float
    predict: bool  # write the what-if results
    track_future: int  # counterfactuals: 0 none, 1 of the action taken, 2 of all
    calibrate: bool  # learn the errors of the figures from telemetry
    inform: bool  # write what the predictions are worth
    demand: bool  # write what late requests need
    places: bool  # write how far each expert is from the user


@kernel_inlined
def _arrived_slo_s(world, b, extras):
    """The latency per token that the observation of cluster b is in units of: that of the arrived request's service class."""
    if extras is None:
        return world.service.terms[0].unit_s
    r = world.cursor[b]
    return world.service.terms[world.workload.user[b, r].service if r < world.workload.total[b] else 0].unit_s


@kernel_inlined
def _send(world, rules, b, action, step):
    """Carry out one decision of cluster b (an expert's index, or N = drop); ``step`` gets the results."""
    state, workload, r, now_s = world.state, world.workload, world.cursor[b], world.now_s[b]
    marginal = 0.0
    if rules.track_future > 0 and action < state.experts.shape[1] and not fits_none(state.engines, b, workload.prompt[b, r]):
        if rules.track_future == 1:
            marginal = marginal_qos(state, workload, b, r, action, now_s, world.scratch)
        else:
            marginal = world.marginal[b, action]
    if rules.demand and rules.predict and action < state.experts.shape[1]:
        update_foreseen_ema(world.demand, b, world.rows.whatif[b, action].own_success)
    route(state, workload, world.service, b, r, action, now_s, marginal, step)


@kernel_inlined
def _count(world, rules, b, step):
    """Count the next arrival of cluster b, and what finished until then, in moving averages."""
    workload = world.workload
    if world.cursor[b] < workload.total[b]:
        update_gap_ema(world.pace, b, world.cursor[b], step.dt_s)
        if rules.demand:
            update_late_ema(world.demand, b, step.finished, step.late)
            slo_s = _arrived_slo_s(world, b, world.state.extras)
            update_demand(world.demand, world.nominal, workload, b, world.cursor[b], world.pace.gaps[b], slo_s)


@kernel_inlined
def decide(world, rules, b, action, step):
    """Carry out one decision of cluster b (an expert's index, or N = drop), up to the next arrival; ``step`` gets the results."""
    _send(world, rules, b, action, step)
    advance_to_next(world.state, world.workload, world.cursor, world.now_s, b, step)
    _count(world, rules, b, step)


@kernel_inlined
def write_observation(world, rules, b):
    """Write the observation of cluster b, and the what-if results and counterfactuals if they are on."""
    workload, nominal, rows, slo_s = world.workload, world.nominal, world.rows, _arrived_slo_s(world, b, world.state.extras)
    telemetry = sync_telemetry(world.state, world.late, world.views, world.cursor, world.delay_s, world.now_s, b)
    if rules.calibrate:
        update_calibration(world.calibration, nominal, workload, telemetry, b)
    if rules.calibrate or telemetry.arrived == 0 or world.service.terms.size > 1:
        describe_engines(nominal, world.calibration, b, slo_s, rows.experts)
    observe(telemetry, nominal, workload, world.pace, world.service, b, slo_s, rows)
    if rules.inform:
        write_worth(world.worth, world.calibration.errors, workload, b, telemetry.arrived, rows.information)
    if rules.places:
        write_places(
            nominal,
            workload,
            world.service,
            extras_of(telemetry.actual.extras, b),
            world.at_site,
            b,
            telemetry.arrived,
            rows.places,
        )
    if rules.predict:
        predict(telemetry, nominal, workload, b, world.scratch, rules.tau, rows.whatif)
    if rules.demand:
        if telemetry.arrived == 0:  # nobody has decided yet
            update_demand(world.demand, nominal, workload, b, 0, world.pace.gaps[b], slo_s)
        write_demand(world.demand, world.calibration.errors, b, rows.demand[b])
    if rules.track_future == 2:
        true_marginals(world.state, workload, b, telemetry.arrived, telemetry.now_s, world.scratch, world.marginal[b])


@kernel
def step_all(actions, steps, show, world, rules):
    """One decision in every cluster that has a request to route, then its next observation, if ``show``.

    ``actions`` (B,) may also be BEGIN or WAIT. So one kernel writes first and later observations: it takes long to compile.
    """
    world = borrow(world)
    for b in range(actions.size):
        if actions[b] == WAIT:
            continue
        if actions[b] != BEGIN:
            if world.cursor[b] == world.workload.total[b]:
                clear_step(steps[b])
                continue
            decide(world, rules, b, actions[b], steps[b])
        if show:
            write_observation(world, rules, b)


@kernel
def step_living(actions, steps, show, world, rules, living):
    """``step_all`` in clusters that change within an episode (``rllib_envs.sim.living``)."""
    world, living = borrow(world), borrow(living)
    for b in range(actions.size):
        if actions[b] == WAIT:
            continue
        if actions[b] == BEGIN:
            begin_living(world.state, world.late, world.views, world.workload, world.nominal, living, world.now_s, b)
        else:
            if world.cursor[b] == world.workload.total[b]:
                clear_step(steps[b])
                continue
            r = world.cursor[b]
            _send(world, rules, b, actions[b], steps[b])
            note_sent(world.state, world.workload, living, b, r, actions[b], steps[b])
            advance_living(
                world.state,
                world.late,
                world.views,
                world.workload,
                world.nominal,
                living,
                world.cursor,
                world.now_s,
                b,
                steps[b],
            )
            if rules.track_future > 0:
                renew_future_qos(world.state, living, b, world.now_s[b], world.scratch)
            _count(world, rules, b, steps[b])
        if world.views.kind[b] == HELD:
            hold(world.state, world.views, living, world.cursor, world.now_s, b)
        elif world.views.kind[b] == FOLLOWED:
            follow(world.state, world.late, world.workload, world.views, living, world.cursor, world.delay_s, world.now_s, b)
        if show:
            write_observation(world, rules, b)
