"""A training run: options, environment variants, algorithm, loop, log, validation."""
