"""Prepared data that the runs of a store share: prepared once, found by its content, pruned."""
