"""Ray clusters: nodes, checks before a run, jobs, and the configuration files of clusters."""
