"""The simulated world: scenarios, simulator, workloads, environments, heuristics. Importing it registers the environments."""

import gymnasium as gym

ENV_ID = "EdgeRouting-v0"

if ENV_ID not in gym.registry:
    gym.register(
        ENV_ID,
        entry_point="rllib_envs.env:EdgeRoutingEnv",
        vector_entry_point="rllib_envs.env:EdgeRoutingVectorEnv",
    )

__all__ = ["ENV_ID"]
