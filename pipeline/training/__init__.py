"""The training stages of a run: start, loop, save, go back, record."""
