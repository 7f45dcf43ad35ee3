"""pion plan: what fits on which GPU, and for how many hours and dollars."""
