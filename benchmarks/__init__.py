"""Comparisons with other software and between versions: each is run by one command."""
