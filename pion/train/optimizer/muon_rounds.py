"""Muon's rounds over several ranks: which rank orthogonalizes which matrices, and in what memory.

The owner of a matrix follows from the model and the number of ranks alone. A matrix is always
orthogonalized whole, so how many ranks there are changes no bit.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, groupby, zip_longest
from typing import TypeVar

import torch

from pion.train.optimizer.muon import (
    BATCH_ELEMENTS,
    newton_schulz_flops,
    orthogonalize_bytes,
    step_bytes,
)
from pion.train.shard_rules import part_of, sharded_dim

Shape = tuple[int, int]  # (rows, cols)

Item = TypeVar("Item")


def elements(matrices: Iterable[Shape]) -> int:
    """Return the number of elements of all matrices."""
    return sum(map(_elements, matrices))


def each_matrix(shapes: Iterable[Sequence[int]]) -> tuple[Shape, ...]:
    """Return the shapes of single matrices: a stack (k, rows, cols) has k of them."""
    return tuple(
        (rows, cols) for *stack, rows, cols in shapes for _ in range(stack[0] if stack else 1)
    )


def deal_matrices(shapes: Sequence[Shape], ranks: int) -> list[list[int]]:
    """Return the numbers of the matrices that each rank orthogonalizes.

    The matrix with the most arithmetic comes first, and goes to the rank that has the least so far.
    A rank's matrices of one shape follow each other.
    """
    loads = [(0, 0, rank) for rank in range(ranks)]  # FLOPs, elements and rank: a heap
    owned: list[list[int]] = [[] for _ in range(ranks)]
    for number in sorted(range(len(shapes)), key=lambda n: (-_flops(shapes[n]), shapes[n], n)):
        flops, size, rank = loads[0]
        shape = shapes[number]
        owned[rank].append(number)
        heapq.heapreplace(loads, (flops + _flops(shape), size + _elements(shape), rank))
    return owned


def rounds_of(shapes: Sequence[Shape], ranks: int) -> list[list[list[int]]]:
    """Return the numbers of the matrices that each rank orthogonalizes in each round, before the
    ranks exchange the results.

    A rank takes the next ones of its matrices: all ranks together take at most `BATCH_ELEMENTS`, or
    each takes one matrix.
    """
    sizes, most = [_elements(shape) for shape in shapes], BATCH_ELEMENTS // ranks
    by_rank = [
        groups_of(numbers, sizes.__getitem__, most) for numbers in deal_matrices(shapes, ranks)
    ]
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


def divided_step_bytes(
    shapes: Sequence[Sequence[int]], width: int, ranks: int, *, sharded: bool
) -> int:
    """Return the most bytes at once of Muon's step over parameters of these shapes, besides its
    state, on the rank that has the most.

    `width` is the bytes of an element in the iterations. If the model is `sharded`, ranks have rows
    of each matrix. While a round is orthogonalized, what the ranks have exchanged of the round
    before is there, too.
    """
    alone: list[Sequence[int]] = []
    if sharded:  # a rank has whole matrices of these stacks
        alone = [s for s in shapes if len(s) == 3 and sharded_dim(s, ranks, "matrix") == 0]
    most = step_bytes([torch.Size((-(-s[0] // ranks), *s[1:])) for s in alone], width)
    matrices = each_matrix([shape for shape in shapes if shape not in alone])
    before = before_in_fp32 = 0
    for numbers in rounds_of(matrices, ranks):
        by_owner = [[matrices[number] for number in owned] for owned in numbers]
        if sharded:
            received = sum(part_of(shape, ranks, "matrix") for shape in chain(*by_owner))
        else:
            received = ranks * max(elements(owned) for owned in by_owner)
        computing = max(_round_bytes(owned, received, width, sharded) for owned in by_owner)
        exchanged = width * (max(elements(owned) for owned in by_owner) + received)
        most = max(most, before + computing, before + exchanged + before_in_fp32)
        before, before_in_fp32 = exchanged, 0 if width == 4 else 4 * received
    return max(most, before + before_in_fp32)


def _round_bytes(owned: Sequence[Shape], received: int, width: int, sharded: bool) -> int:
    """Return the most bytes at once in a round until its updates are sent, on the owner of these
    matrices, which then receives so many elements."""
    size = elements(owned)
    # What is orthogonalized: of all matrices, or of the first one of the next batch.
    directions = 4 * (size if sharded else max(map(_elements, owned), default=0))
    done = computing = 0
    for shape, alike in groupby(owned):
        count = len(list(alike))
        needed = 4 * count * _elements(shape) + orthogonalize_bytes(shape, count, width)
        computing = max(computing, directions + width * done + needed)
        done += count * _elements(shape)
    # This rank's rows, then those of its matrices that have come, and these as whole matrices.
    bringing = 4 * received + max(4 * received, 8 * size) if sharded else 0
    # The updates, and all that is sent. Those of tall matrices are transposed, and so are copied.
    tall = elements(shape for shape in owned if shape[0] > shape[1])
    return max(bringing, computing, width * (2 * size + max(tall, received)))


def _flops(shape: Shape) -> int:
    return newton_schulz_flops(*shape)


def _elements(shape: Shape) -> int:
    return shape[0] * shape[1]
