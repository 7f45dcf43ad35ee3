"""The model that a run starts from (`model.from`): find it, and keep it in the run's store."""
