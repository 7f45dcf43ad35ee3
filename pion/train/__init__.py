"""The trainer: schedule, optimizer, plan for a machine, memory.

A resumed run has the bits of an unbroken one, so another order of a sum, or another dtype on the
way, is a break: `python -m tools.golden check weights` and tests/runs/test_release_0_1_0.py tell.
"""
