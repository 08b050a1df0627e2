"""What is claimed about speed and fidelity, measured beside the alternative in one run."""
