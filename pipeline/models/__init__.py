"""From a name to a model on this disk."""
