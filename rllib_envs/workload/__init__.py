"""What comes: arrivals, traces, the request catalogue, predictions, episodes."""
