"""The optimizer's moments on the rank that has the most of them, if ranks divide its work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from pion.train.optimizer.muon import BATCH_ELEMENTS, orthogonalize_bytes, step_bytes
from pion.train.optimizer.ownership import Shape, deal_matrices, muon_rounds
from pion.train.shard_rules import part_of, sharded_dim


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


def sharded_step_bytes(shapes: Sequence[Sequence[int]], width: int, ranks: int) -> int:
    """Return the most bytes at once of Muon's step besides its state, if ranks keep rows of each
    weight (sharded_muon.py), on the rank that has the most.

    `shapes` are those of parameters, and `width` is the bytes of an element in the iterations.
    """
    whole = [  # a rank has whole matrices of these stacks
        torch.Size((-(-shape[0] // ranks), *shape[1:]))
        for shape in shapes
        if len(shape) == 3 and sharded_dim(shape, ranks, "matrix") == 0
    ]
    matrices = each_matrix([s for s in shapes if len(s) == 2 or sharded_dim(s, ranks, "matrix")])
    most = step_bytes(whole, width) if whole else 0
    sizes = [rows * cols for rows, cols in matrices]
    for by_rank in muon_rounds(deal_matrices(matrices, ranks), sizes, BATCH_ELEMENTS // ranks):
        owned = max(elements([matrices[n] for n in numbers]) for numbers in by_rank)
        # This rank's rows of all matrices of the round.
        rows = sum(
            part_of(matrices[number], ranks, "matrix") for numbers in by_rank for number in numbers
        )
        runs = [Counter(matrices[number] for number in numbers) for numbers in by_rank]
        computing = max(
            4 * count * each[0] * each[1] + orthogonalize_bytes(each, count, width)
            for run in runs
            for each, count in run.items()
        )
        # What is sent and what has come of it, in fp32, next to the results so far.
        there = 4 * rows + (8 + width) * owned
        most = max(most, 8 * rows, there + computing, there + 2 * width * owned + 8 * rows)
    return most
