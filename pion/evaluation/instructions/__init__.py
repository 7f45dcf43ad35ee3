"""Ask a tuned model for things that code can check: the built-in measure `instructions`."""
