"""What a run cost, by cause, and whether it may continue."""
