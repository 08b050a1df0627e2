"""Measure an engine over its API: a designed load, and what the server says of itself."""
