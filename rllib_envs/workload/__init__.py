"""Workloads: arrivals, traces, the request catalogue, predictions, episodes."""
