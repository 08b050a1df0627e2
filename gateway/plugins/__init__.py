"""Parts for other gateways, which ask this one where to send a request."""
