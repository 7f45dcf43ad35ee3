"""Who owns what: which rank updates which part of a model, and so has its moments.

The owner follows from the model and the number of ranks alone: a resumed run has the same owners.
Muon's matrices are always updated whole.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from pion.train.muon import newton_schulz_flops

Shape = tuple[int, int]  # (rows, cols)


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


def _flops(shape: Shape) -> int:
    return newton_schulz_flops(*shape)
