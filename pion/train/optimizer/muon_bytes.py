"""The bytes that a step of Muon over several ranks needs, on the rank that needs the most."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import torch

from pion.train.optimizer.muon import orthogonalize_bytes, step_bytes
from pion.train.optimizer.ownership import Shape, muon_rounds
from pion.train.shard_rules import part_of, sharded_dim


def elements(matrices: Sequence[Shape]) -> int:
    """Return the number of elements of all matrices."""
    return sum(rows * cols for rows, cols in matrices)


def each_matrix(shapes: Sequence[Sequence[int]]) -> tuple[Shape, ...]:
    """Return the shapes of single matrices: a stack (k, rows, cols) has k of them."""
    return tuple(
        (rows, cols) for *stack, rows, cols in shapes for _ in range(stack[0] if stack else 1)
    )


def whole_step_bytes(shapes: Sequence[Shape], width: int, ranks: int) -> int:
    """Return the most bytes at once of WholeMuon's step over matrices of these shapes, besides its
    state, on the rank that has the most.

    `width` is the bytes of an element in the iterations. While a round is orthogonalized, what the
    ranks have exchanged of the round before is there, too.
    """
    most = before = before_in_fp32 = 0
    for by_rank in muon_rounds(shapes, ranks):
        size = max(elements(_of(shapes, owned)) for owned in by_rank)
        runs = [Counter(_of(shapes, owned)) for owned in by_rank]
        computing = max(
            4 * count * rows * cols + orthogonalize_bytes((rows, cols), count, width)
            for run in runs
            for (rows, cols), count in run.items()
        )
        exchanged = width * (ranks + 1) * size
        most = max(
            most,
            before + width * size + computing,
            before + exchanged + before_in_fp32,
        )
        before, before_in_fp32 = exchanged, 0 if width == 4 else 4 * ranks * size
    return max(most, before + before_in_fp32)


def rows_step_bytes(shapes: Sequence[Sequence[int]], width: int, ranks: int) -> int:
    """Return the most bytes at once of RowsMuon's step besides its state, on the rank that has the
    most.

    `shapes` are those of parameters, and `width` is the bytes of an element in the iterations.
    """
    whole = [  # a rank has whole matrices of these stacks
        torch.Size((-(-shape[0] // ranks), *shape[1:]))
        for shape in shapes
        if len(shape) == 3 and sharded_dim(shape, ranks, "matrix") == 0
    ]
    matrices = each_matrix([s for s in shapes if len(s) == 2 or sharded_dim(s, ranks, "matrix")])
    most = step_bytes(whole, width) if whole else 0
    for by_rank in muon_rounds(matrices, ranks):
        # This rank's rows of all matrices of the round.
        rows = sum(part_of(matrices[n], ranks, "matrix") for numbers in by_rank for n in numbers)
        owned = (_of(matrices, numbers) for numbers in by_rank)
        most = max(most, *(_round_bytes(own, rows, width) for own in owned))
    return most


def _round_bytes(owned: Sequence[Shape], rows: int, width: int) -> int:
    """Return the most bytes at once in a round of RowsMuon, on the owner of these matrices.

    It has `rows` elements of all matrices of the round.
    """
    own = elements(owned)
    # The rows of those that have more rows than columns are copied, because they are transposed.
    results = width * (own + elements([shape for shape in owned if shape[0] > shape[1]]))
    done = computing = 0
    for shape, run in groupby(owned):
        count = len(list(run))
        needed = orthogonalize_bytes(shape, count, width) + 4 * elements([shape] * count)
        computing = max(computing, width * done + needed)
        done += elements([shape] * count)
    found = width * rows + (0 if width == 4 else 4 * rows)
    return max(
        8 * rows,  # what is orthogonalized, and all of it in one tensor
        # That, what has come, which is then whole; and next to it the results, or what they need.
        4 * rows + 8 * own + max(computing, results + width * own),
        # What was sent back and what has come, in fp32.
        8 * own + results + width * own + found,
    )


def _of(shapes: Sequence[Shape], numbers: Sequence[int]) -> list[Shape]:
    return [shapes[number] for number in numbers]
