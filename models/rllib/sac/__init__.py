"""Discrete SAC on rollout fragments: its configuration, learner, module and replay buffer."""
