"""Muon over the ranks of a sharded model: each has some rows of each matrix.

A rank computes the momentum of its rows. Then each matrix goes to the rank that owns it
(ownership.py), which orthogonalizes it whole, in fp32 as one rank would, and sends each rank its
rows back, in the precision of the Newton–Schulz iterations. So a matrix is updated as by one rank,
and the ranks exchange each of its elements twice. The experts of a stack are whole where they are,
and are not exchanged.

There are rounds, so that whole matrices take little memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pion.train.optimizer.muon import BATCH_ELEMENTS, Muon, apply_update, orthogonalize
from pion.train.optimizer.ownership import Shape, deal_matrices, muon_rounds
from pion.train.optimizer.state_pieces import Held


@dataclass(frozen=True)
class _Matrix:
    """A matrix (rows, cols), of which each rank has `rows_of` it, in the order of the ranks."""

    shape: Shape
    rows_of: tuple[int, ...]
    param: nn.Parameter  # this rank's rows, or those of a stack with this matrix at `place`
    place: int | None
    momentum: Tensor

    def of(self, tensor: Tensor) -> Tensor:
        """Return this rank's rows of the matrix, of a tensor that is like the parameter."""
        return tensor if self.place is None else tensor[self.place]

    def size_on(self, rank: int) -> int:
        """Return how many elements a rank has."""
        return self.rows_of[rank] * self.shape[1]


class ShardedMuon(Muon):
    """Muon over this rank's parts of named parameters, as muon.py's `Muon`.

    `held` says which parts these are. `momentum` has each parameter's buffer by name, like its
    part.
    """

    def __init__(
        self,
        params: dict[str, nn.Parameter],
        held: dict[str, Held],
        *,
        weight_decay: float,
        dtype: torch.dtype,
        rank: int,
        world_size: int,
    ) -> None:
        self.weight_decay, self.dtype = weight_decay, dtype
        self._rank, self._ranks = rank, world_size
        here = {name: param for name, param in params.items() if _is_whole(held[name], param)}
        some = {name: param for name, param in here.items() if param.numel()}
        self._whole = Muon(some, weight_decay=weight_decay, dtype=dtype)
        others = {name: param for name, param in params.items() if name not in some}
        self.momentum = self._whole.momentum | {
            name: torch.zeros_like(param.detach()) for name, param in others.items()
        }
        matrices = [
            matrix
            for name, param in params.items()
            if name not in here
            for matrix in _matrices(param, self.momentum[name], held[name].shape, world_size)
        ]
        shapes = [matrix.shape for matrix in matrices]
        self._rounds = [
            [[matrices[number] for number in numbers] for numbers in by_owner]
            for by_owner in muon_rounds(
                deal_matrices(shapes, world_size),
                [rows * cols for rows, cols in shapes],
                BATCH_ELEMENTS // world_size,
            )
        ]

    @torch.no_grad()
    def step(self, lr: float, momentum: float) -> None:
        """Update this rank's parts from their `.grad`.

        Every rank calls this.
        """
        self._whole.step(lr, momentum)
        for by_owner in self._rounds:
            self._step(by_owner, lr, momentum)

    def _step(self, by_owner: Sequence[Sequence[_Matrix]], lr: float, beta: float) -> None:
        """Update the matrices of a round, by the rank that owns them."""
        every = [matrix for matrices in by_owner for matrix in matrices]
        mine = by_owner[self._rank]
        # What this rank has of the matrices of each owner; and what it gets from each rank.
        given = [sum(m.size_on(self._rank) for m in matrices) for matrices in by_owner]
        taken = [sum(m.size_on(rank) for m in mine) for rank in range(self._ranks)]
        sent = torch.cat([_direction(matrix, beta).reshape(-1) for matrix in every])
        rows = sent.new_empty(sum(taken))
        dist.all_to_all_single(rows, sent, taken, given)
        by_rank = [
            of_rank.split([matrix.size_on(rank) for matrix in mine])
            for rank, of_rank in enumerate(rows.split(taken))
        ]
        whole = [
            torch.cat([parts[number] for parts in by_rank]).view(matrix.shape)
            for number, matrix in enumerate(mine)
        ]
        updates = list(self._orthogonalized(whole))
        back = [
            update[first : first + count].reshape(-1)
            for rank in range(self._ranks)
            for update, matrix in zip(updates, mine, strict=True)
            for first, count in [(sum(matrix.rows_of[:rank]), matrix.rows_of[rank])]
        ]
        sent = torch.cat(back) if back else rows.to(self.dtype)
        found = sent.new_empty(sum(given))
        dist.all_to_all_single(found, sent, given, taken)
        parts = found.float().split([matrix.size_on(self._rank) for matrix in every])
        for matrix, part in zip(every, parts, strict=True):
            weights = matrix.of(matrix.param.detach())
            apply_update([weights], [part.view_as(weights)], lr, self.weight_decay, matrix.shape)

    def _orthogonalized(self, matrices: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the orthogonalized matrices. Those of one shape follow each other: one batch."""
        for _, alike in groupby(matrices, key=lambda matrix: matrix.shape):
            yield from orthogonalize(torch.stack(list(alike)), self.dtype)


def _is_whole(held: Held, param: Tensor) -> bool:
    """Return whether the matrices that a rank has are whole: those of a stack cut between them."""
    return len(held.shape) == 3 and (not param.numel() or param.shape[1:] == held.shape[1:])


def _matrices(
    param: nn.Parameter, momentum: Tensor, shape: torch.Size, ranks: int
) -> list[_Matrix]:
    """Return the matrices of a parameter of this whole `shape`, whose rows the ranks have."""
    rows, cols = shape[-2:]
    most = -(-rows // ranks)
    rows_of = tuple(max(0, min(most, rows - rank * most)) for rank in range(ranks))
    places: Sequence[int | None] = range(shape[0]) if len(shape) == 3 else [None]
    return [_Matrix((rows, cols), rows_of, param, place, momentum) for place in places]


def _direction(matrix: _Matrix, beta: float) -> Tensor:
    """Move the momentum of this rank's rows, and return what is orthogonalized of them."""
    assert matrix.param.grad is not None
    gradient, momentum = matrix.of(matrix.param.grad), matrix.of(matrix.momentum)
    momentum.lerp_(gradient, 1 - beta)
    return gradient.lerp(momentum, beta)
