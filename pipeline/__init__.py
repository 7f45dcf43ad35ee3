"""A job file becomes a model: `pion` on the command line. docs/architecture.md shows the rooms."""
