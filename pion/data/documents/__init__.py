"""Documents and conversations from files, and from the Python standard library."""
