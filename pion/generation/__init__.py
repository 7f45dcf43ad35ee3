"""Continue texts: one, several together, or the answers to many requests."""
