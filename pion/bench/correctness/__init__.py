"""The checks: the card's results against the same computation on the CPU."""
