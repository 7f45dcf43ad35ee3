"""What a job will do, found by doing it on the head of its data."""
