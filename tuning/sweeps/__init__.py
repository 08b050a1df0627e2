"""A sweep: space, trials, tuner, report."""
