"""Real engines for tests and for the demo: llama.cpp servers with a small model, started and ended by process id."""
