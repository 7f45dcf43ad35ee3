"""`pion serve`: an OpenAI-compatible HTTP API, and a page to talk to models."""
