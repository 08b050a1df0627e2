"""Reports on runs: sections, figures, and an episode replayed and explained."""
