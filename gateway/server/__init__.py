"""The HTTP server: what clients and engines see of the gateway."""
