"""The work of prepare, evaluate and publish, which knows nothing of stores or owners."""
