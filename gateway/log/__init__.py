"""The decision log: it is written here, and read in ``rllib_envs.decision_log``."""
