"""pion check: everything that can fail later, before it costs."""
