"""What a decision log says of the world: policies on its requests, and worlds fitted to it."""
