"""Who owns what: which rank orthogonalizes which of Muon's matrices, and when.

The owner follows from the model and the number of ranks alone. A matrix is always orthogonalized
whole, so how many ranks there are changes no bit.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import TypeVar

from pion.train.optimizer.muon import BATCH_ELEMENTS, newton_schulz_flops

Shape = tuple[int, int]  # (rows, cols)

Item = TypeVar("Item")


def deal_matrices(shapes: Sequence[Shape], ranks: int) -> list[list[int]]:
    """Return the numbers of the matrices that each rank orthogonalizes.

    The matrix with the most arithmetic comes first, and goes to the rank that has the least so far.
    A rank's matrices of one shape follow each other.
    """
    loads = [(0, 0, rank) for rank in range(ranks)]  # FLOPs, elements and rank: a heap
    owned: list[list[int]] = [[] for _ in range(ranks)]
    for number in sorted(range(len(shapes)), key=lambda n: (-_flops(shapes[n]), shapes[n], n)):
        flops, elements, rank = loads[0]
        rows, cols = shapes[number]
        owned[rank].append(number)
        heapq.heapreplace(loads, (flops + _flops(shapes[number]), elements + rows * cols, rank))
    return owned


def muon_rounds(shapes: Sequence[Shape], ranks: int) -> list[list[list[int]]]:
    """Return the numbers of the matrices that each rank orthogonalizes in each round, before the
    ranks exchange the results.

    A rank takes the next ones of its matrices: all ranks together take at most `BATCH_ELEMENTS`, or
    each takes one matrix.
    """

    def elements(number: int) -> int:
        rows, cols = shapes[number]
        return rows * cols

    most = BATCH_ELEMENTS // ranks
    by_rank = [groups_of(numbers, elements, most) for numbers in deal_matrices(shapes, ranks)]
    return [list(numbers) for numbers in zip_longest(*by_rank, fillvalue=[])]


def groups_of(items: Iterable[Item], size: Callable[[Item], int], most: int) -> list[list[Item]]:
    """Cut a row of items into groups: each has as many of the next items as have the size `most`
    together, or one."""
    groups: list[list[Item]] = []
    filled = most
    for item in items:
        if not groups or filled + size(item) > most:
            groups.append([])
            filled = 0
        groups[-1].append(item)
        filled += size(item)
    return groups


def _flops(shape: Shape) -> int:
    return newton_schulz_flops(*shape)
