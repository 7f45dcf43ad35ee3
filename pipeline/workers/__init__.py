"""Ray Train workers: started, followed, and all ended."""
