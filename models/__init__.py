"""The router: encoder, estimator and heads as plain torch modules; ``models.rllib`` has the RLlib integration."""
