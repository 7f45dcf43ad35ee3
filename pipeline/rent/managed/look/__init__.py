"""Look at a rented run: what SkyPilot, RunPod and the store say, and what is wrong."""
