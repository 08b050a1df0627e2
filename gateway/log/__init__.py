"""The decision log: what was decided for each request, in what state, and what came of it, as lines of JSON."""
