"""Rollouts: environment variants, workers, and the fragments that they return."""
