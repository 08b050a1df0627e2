"""The gateway: it decides where requests go, with a trained router or a heuristic, in front of real engines."""
