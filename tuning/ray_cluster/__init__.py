"""Ray for as long as a command needs it, and the checks of its nodes."""
