"""Double DQN whose exploration follows a heuristic: its configuration, learner, module and rollout worker."""
