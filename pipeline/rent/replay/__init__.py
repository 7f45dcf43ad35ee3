"""pion replay: simulate a job on recorded spot markets."""
