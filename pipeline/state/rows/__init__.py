"""Rows that a run reports, metrics and events: how they are written, read and checked."""
