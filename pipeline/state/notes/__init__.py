"""Notes in a run's store next to its HEAD: what people and watchers say about the run."""
