"""Experiments: train, evaluate, simulate, tune; one module for each command."""
