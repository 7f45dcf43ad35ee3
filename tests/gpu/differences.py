"""How far the numbers of a card are from those of a CPU."""

from collections.abc import Iterable

from torch import Tensor


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference, on the CPU in fp64; NaN if one is not a number."""
    return float((found.detach().cpu().double() - expected.detach().cpu().double()).abs().max())


def largest(values: Iterable[float]) -> float:
    """Return the largest value; NaN if one is not a number."""
    return max(values, key=lambda value: (value != value, value))
