"""When a stage of fine-tuning makes so few steps that a model changes little."""

from __future__ import annotations

# With fewer steps, a model changes little, whatever the rate.
FEWEST_STEPS = 30


def better_batch(rows: float) -> int:
    """Return the largest power of 2 that makes FEWEST_STEPS steps of so many rows, or 1."""
    most = int(rows / FEWEST_STEPS)
    return 1 << (most.bit_length() - 1) if most else 1
