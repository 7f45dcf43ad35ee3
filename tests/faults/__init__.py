"""Crashes, races and broken stores. README.md names tests by function.

If you rename one, change the table: tests/docs/test_names.py tells.
"""
