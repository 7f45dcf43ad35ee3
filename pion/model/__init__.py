"""The decoder: its maths, and what it costs.

A resumed run has the bits of an unbroken one, so another order of a sum, or another dtype on the
way, is a break: `python -m tools.golden check weights` and test_decoder_unchanged.py tell.
"""
