"""The reward of a step: its terms, with the scenario's weights."""

# pyright: reportAttributeAccessIssue=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rllib_envs.scenario import Reward
from rllib_envs.sim.cluster import fits_none
from rllib_envs.sim.jit import kernel
from rllib_envs.sim.plan import steps_begun
from rllib_envs.sim.terms import class_of, extras_of, worth_of


@kernel
def paper_impact(state, terms, b, e, now_s, prompt, output):
    """Penalty P_t of arXiv 2508.00234 for sending a request (``prompt``, true ``output`` tokens) to expert e.

    The sum of the scores s_j of the running requests j that the newcomer i would push past the SLO:
    ``s_j * 1[l_now,j + D_j > L]`` with ``D_j = (k1*p_i + k2*sum_{k=1..min(d_j - o_j, d_i)-1} (p_i + k)) / d_j``, where l_now,j is
    the time since arrival over o_j, the tokens so far; d are true lengths; k1 and k2 are the engine's prefill time per token and
    decode time per context token. A request without a token yet has no latency per token; it is left out, as in the paper.
    """
    expert = state.experts[b, e]
    engine = state.engines[b, e]
    iteration = expert.iteration + max(steps_begun(expert, now_s) - 1, 0)
    extras = extras_of(state.extras, b)
    penalty = 0.0
    for i in range(expert.n_dec):
        index = state.running[b, e, i]
        request = state.requests[b, index]
        generated = iteration - request.start
        shared = min(request.output - generated, output) - 1
        slowed = engine.a_s * prompt
        if shared > 0:
            slowed += engine.c_s * (shared * prompt + 0.5 * shared * (shared + 1))
        if (now_s - request.arrival_s) / generated + slowed / request.output > terms[class_of(extras, index)].unit_s:
            penalty += worth_of(state.records[b, index], extras, index)
    return penalty


@kernel
def paper_impact_all(state, workload, terms, cursor, now_s, actions, out):
    """``paper_impact`` of each cluster's action, (B,); 0 for a drop, a request that fits nowhere, and after the episode's end."""
    for b in range(actions.size):
        e, r = actions[b], cursor[b]
        out[b] = 0.0
        if r < workload.total[b] and e < state.experts.shape[1] and not fits_none(state.engines, b, workload.prompt[b, r]):
            out[b] = paper_impact(state, terms, b, e, now_s[b], workload.prompt[b, r], workload.output[b, r, e])


def combine(weights: Reward, steps: NDArray[np.void], impact: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reward (B,) of one step: the terms of ``steps`` (STEP records) and the paper's penalty (B,), weighted."""
    reward = (
        weights.realised_qos * steps["qos"]
        - weights.violation * steps["late"]
        - weights.paper_impact * impact
        - weights.drop * (steps["dropped"] + steps["rejected"])
        + weights.marginal_qos * steps["marginal_qos"]
    )
    if weights.energy:
        reward -= weights.energy * 1e-3 * steps["energy_j"]
    if weights.cost:
        reward -= weights.cost * steps["cost"]
    if weights.violation:  # a client that gave up found the answer too late
        reward -= weights.violation * steps["cancelled"]
    if weights.drop:
        reward -= weights.drop * steps["failed"]
    return reward
