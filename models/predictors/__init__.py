"""Predictors of quality and length from the text of a prompt, for each model."""
