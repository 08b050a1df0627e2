"""The router: encoder, estimator and heads as plain torch modules; their RLlib glue in ``models.rllib``."""
