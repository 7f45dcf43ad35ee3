"""What a run's machines are, and what they have cost, by cause."""
