"""Who owns what: which rank updates which part of a model, and so has its moments.

All ranks have all weights and the sum of all gradients. Each part of the model is updated by one of
them, its owner, and the others get the result. So the arithmetic and the moments are there once,
whatever the number of ranks.

The owner follows from the model and the number of ranks alone: a resumed run has the same owners.
How many ranks there are changes no bit of what AdamW computes, because every element is computed
for itself. Muon's matrices are always updated whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from typing import TypeVar

from pion.train.optimizer.muon import newton_schulz_flops
from pion.train.optimizer.rule import ALIGNED_TO

Shape = tuple[int, int]  # (rows, cols)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Part:
    """Elements [start, stop) of a flattened tensor, which is number `index` in some list."""

    index: int
    start: int
    stop: int


def even_parts(sizes: Sequence[int], ranks: int, units: Sequence[int]) -> list[list[Part]]:
    """Return the parts of tensors with so many elements that each rank owns, in order.

    The tensors lie one behind the other, each beginning at a multiple of `ALIGNED_TO`, and are cut
    into `ranks` equal lengths, at the next multiple of a tensor's unit.
    """
    *begins, end = accumulate((_up(size, ALIGNED_TO) for size in sizes), initial=0)
    length = _up(-(-end // ranks), ALIGNED_TO)
    owned: list[list[Part]] = []
    for rank in range(ranks):
        first, last = rank * length, (rank + 1) * length
        parts = [
            Part(index, max(_up(first - begin, unit), 0), min(_up(last - begin, unit), size))
            for index, (begin, size, unit) in enumerate(zip(begins, sizes, units, strict=True))
        ]
        owned.append([part for part in parts if part.start < part.stop])
    return owned


def even_rows(rows: int, ranks: int) -> list[range]:
    """Return the rows that each rank owns of a tensor whose rows stay whole."""
    return [range(rows * rank // ranks, rows * (rank + 1) // ranks) for rank in range(ranks)]


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


def muon_rounds(
    owned: Sequence[Sequence[int]], sizes: Sequence[int], most: int
) -> list[list[list[int]]]:
    """Return what each rank orthogonalizes in each round, before the ranks exchange the results.

    A rank takes the next ones of its matrices: as many as have `most` elements, or one. `sizes` has
    the elements of each matrix.
    """
    by_rank = [groups_of(numbers, sizes.__getitem__, most) for numbers in owned]
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


def _up(number: int, unit: int) -> int:
    """Return the next multiple of the unit."""
    return -(-number // unit) * unit
