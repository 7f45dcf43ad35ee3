"""What `pion run` does, from claiming the run to the closing summary."""
