"""RLModules and what else RLlib needs to train the router."""
