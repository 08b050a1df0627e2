"""Engine profiles from measurements: readers of public files, and the fit."""
