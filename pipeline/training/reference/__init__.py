"""The numbers of a reference model: computed once before a stage, kept, and bound to the run."""
