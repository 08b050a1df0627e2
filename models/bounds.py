"""Bounds that the networks share."""

MASKED_SCORE = -1e9
"""Score of an action that is not possible: its probability is exactly 0 in float32, and scores stay finite."""

MOST_WIDTH = 4096
"""Of any layer: more is a mistake, or an attempt to exhaust memory."""
