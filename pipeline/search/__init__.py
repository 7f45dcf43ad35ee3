"""Which of some settings is best: `pion try`."""
