"""From one machine to many: nodes of Ray, checks before a run, jobs; and the files that clusters are made of."""
