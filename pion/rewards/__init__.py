"""Judge answers that a model has sampled."""
