"""The measurements: speed of training and generation, cost of a save, memory."""
