"""pion check: find what would fail later, before it costs anything."""
