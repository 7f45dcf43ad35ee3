"""pion plan: which GPUs a job fits on, and for how many hours and dollars."""
