"""What a decision log shows: policies asked again in its places, and how near the predictions came."""
