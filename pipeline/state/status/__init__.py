"""What the store knows about a run, for people: its job, and how far it is."""
