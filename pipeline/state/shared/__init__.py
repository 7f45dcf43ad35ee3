"""What the runs of a store share: prepared data, and the models that they start from."""
