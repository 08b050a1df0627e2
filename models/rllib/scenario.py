"""Turn a scenario into a training scenario, with privileged data for the learner."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike

from rllib_envs.scenario import Reward, Scenario
from rllib_envs.scenarios.load import as_scenario

SOFT_DEADLINE = 0.035
"""Soft deadline of the roll-out, as a share of the SLO: about what impact-greedy does best with, tuned load by load."""

MARGINAL = Reward(realised_qos=0.0, marginal_qos=1.0)
"""Reward of a decision for what it does to all requests. Over an episode it sums to their QoS, as realised QoS does."""


def training_scenario(scenario: Scenario | str | PathLike[str] = "edge6") -> Scenario:
    """Add what-if results to observations, and the true marginal QoS of every action to infos.

    The reward is ``MARGINAL``, unless the scenario has a reward of its own.

    Args:
        scenario: a value, a preset's name or a file.

    Raises:
        InputError: no such scenario, or not a valid one.
    """
    world = as_scenario(scenario)
    seen = world.observation
    tau = seen.whatif_tau if seen.whatif else SOFT_DEADLINE
    return replace(
        world,
        observation=replace(seen, whatif=True, whatif_tau=tau, counterfactual=True),
        reward=MARGINAL if world.reward == Reward() else world.reward,
    )
