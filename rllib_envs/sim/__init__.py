"""The engine simulator: profiles, state, compiled kernels. NumPy and numba only."""
