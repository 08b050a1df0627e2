"""PPO on rollout fragments: its configuration, learner and module."""
