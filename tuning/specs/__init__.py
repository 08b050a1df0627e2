"""What a user types: routers, workloads and faults by name."""
