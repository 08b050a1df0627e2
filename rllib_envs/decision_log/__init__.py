"""The decision log of a gateway: its lines, its reader, and its requests as arrays and as an episode."""
