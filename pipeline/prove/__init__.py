"""Kill copies of a job again and again, and compare how they end."""
