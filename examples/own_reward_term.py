"""A reward term of your own, around the Gymnasium environment: a price for each token that an expert is predicted to write.

What it does: the wrapper below subtracts ``price * predicted output tokens * billions of parameters / 1000`` of the expert
that is chosen, a rough cost of its energy. The script plays two rules, the best predicted score and the best predicted score
less the charge, and prints what each earns with and without the term.

Run it:

    python examples/own_reward_term.py

Expect the first rule to earn .380 in QoS and to pay .265 a request; it keeps .114. The second earns .374 and pays .159; it
keeps .216.

Limits: the wrapper sees what the router sees (observation, action, info), nothing that is true of a request under way. It is of
the single environment, which stock RLlib and other libraries step; the algorithms of ``models.rllib`` step many clusters in one
call and do not see it. Commands judge by QoS, which it does not change. A term of the simulator itself, with its weight in the
scenario, is a matter of ``rllib_envs/reward.py``: docs/how-to/add-a-reward-term.md.
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium as gym
import numpy as np

from rllib_envs import ENV_ID
from rllib_envs.scenario import with_workload
from rllib_envs.scenarios.load import load_scenario
from rllib_envs.sim.rows import ARRIVED_FEATURES

PREDICTED_LENGTH, PREDICTED_SCORE = ARRIVED_FEATURES.index("predicted_length"), ARRIVED_FEATURES.index("predicted_score")
TOKENS = 256  # of a predicted length of 1


class PricedTokens(gym.Wrapper[Any, Any, Any, Any]):
    """Charges each request for the tokens that it is predicted to get, by the size of the model."""

    def __init__(self, env: gym.Env[Any, Any], price: float) -> None:
        super().__init__(env)
        experts = env.unwrapped.scenario.experts  # type: ignore[attr-defined]
        self.charges = price * TOKENS * np.array([expert.params_b for expert in experts]) / 1000
        self._predicted = np.zeros(len(experts))

    def reset(self, **options: Any) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(**options)
        self._predicted = observation["arrived"][:, PREDICTED_LENGTH]
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a decision; ``info["cost"]`` is what it was charged."""
        cost = float(self.charges[action] * self._predicted[action]) if action < self.charges.size else 0.0
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._predicted = observation["arrived"][:, PREDICTED_LENGTH]
        return observation, float(reward) - cost, terminated, truncated, {**info, "cost": cost}


def best_score(observation: Any, env: PricedTokens) -> int:
    """The best predicted score among the experts that can take the request."""
    return int(np.where(observation["action_mask"][:-1] > 0, observation["arrived"][:, PREDICTED_SCORE], -np.inf).argmax())


def best_value(observation: Any, env: PricedTokens) -> int:
    """The best predicted score less the charge."""
    value = observation["arrived"][:, PREDICTED_SCORE] - env.charges * observation["arrived"][:, PREDICTED_LENGTH]
    return int(np.where(observation["action_mask"][:-1] > 0, value, -np.inf).argmax())


def main() -> None:
    """Play both rules for a few episodes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="one short episode")
    smoke = parser.parse_args().smoke
    scenario = with_workload(load_scenario("edge6"), load="light", requests=200 if smoke else 1000)
    env = PricedTokens(gym.make(ENV_ID, scenario=scenario), price=0.1)
    for name, rule in {"best score": best_score, "best value": best_value}.items():
        qos = cost = earned = 0.0
        episodes = 1 if smoke else 5
        for seed in range(episodes):
            observation, _ = env.reset(seed=seed)
            over = False
            while not over:
                observation, reward, over, _, info = env.step(rule(observation, env))
                qos, cost, earned = qos + info["qos"], cost + info["cost"], earned + reward
        per_request = 1 / (episodes * (scenario.workload.requests or 1))
        print(f"{name:12} QoS {qos * per_request:.4f} - cost {cost * per_request:.4f} = reward {earned * per_request:.4f}")


if __name__ == "__main__":
    main()
