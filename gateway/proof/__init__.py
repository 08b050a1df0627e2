"""What a decision log shows: other policies on the same requests, and how near the predictions came."""
