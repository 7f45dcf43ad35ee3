"""The optimizer's moments on the rank that has the most of them, if ranks divide its work."""

from __future__ import annotations

from collections.abc import Sequence

from pion.train.optimizer.ownership import Shape, deal_matrices


def moment_bytes(by_adamw: int, matrices: Sequence[Shape], ranks: int) -> int:
    """Return the bytes of the moments on the rank that has the most of them.

    AdamW has 8 bytes for each of the numbers that it updates, and they are divided evenly. Muon has
    4 for each element of a matrix, which its owner keeps.
    """
    owned = deal_matrices(matrices, ranks)
    most = max(elements([matrices[number] for number in numbers]) for numbers in owned)
    return 8 * -(-by_adamw // ranks) + 4 * most


def elements(matrices: Sequence[Shape]) -> int:
    """Return the number of elements of all matrices."""
    return sum(rows * cols for rows, cols in matrices)


def each_matrix(shapes: Sequence[Sequence[int]]) -> tuple[Shape, ...]:
    """Return the shapes of single matrices: a stack (k, rows, cols) has k of them."""
    found: list[Shape] = []
    for *stack, rows, cols in shapes:
        found += [(rows, cols)] * (stack[0] if stack else 1)
    return tuple(found)
