"""One module per command that looks at or uses a run or a model without advancing it."""
