"""Evaluations: the matrix of routers and workloads, its comparisons, tables and figures."""
