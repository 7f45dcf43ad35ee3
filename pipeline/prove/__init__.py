"""Prove on a user's own job that nothing is lost: kill a copy of it and compare."""
