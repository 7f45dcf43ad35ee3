"""pion replay: a job on recorded spot markets."""
