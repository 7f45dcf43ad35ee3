"""Kill copies of a job many times, and compare how they end."""
