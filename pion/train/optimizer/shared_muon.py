"""Muon over several ranks: each matrix is orthogonalized whole, by the rank that owns it.

The ranks exchange the orthogonalized updates in the precision of the Newton–Schulz iterations, in
which one rank has them too. Then each rank changes all weights by all updates. So the weights have
the bits that one rank would give them.

There are rounds, so that the updates of all matrices are never in memory at once. The ranks
exchange the updates of a round while they compute the next one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pion.train.optimizer.muon import (
    BATCH_ELEMENTS,
    Muon,
    apply_update,
    orthogonalize,
    orthogonalize_bytes,
)
from pion.train.optimizer.ownership import Shape, deal_matrices, muon_rounds
from pion.train.optimizer.state_pieces import Piece


@dataclass(frozen=True)
class _Matrix:
    """The matrix number `place` of a stack, or the only one of a parameter that is no stack."""

    name: str  # of the parameter
    param: nn.Parameter
    place: int

    @property
    def shape(self) -> Shape:
        rows, cols = self.param.shape[-2:]
        return rows, cols

    @property
    def size(self) -> int:
        rows, cols = self.shape
        return rows * cols

    def of(self, tensor: Tensor) -> Tensor:
        """Return this matrix of a tensor that is like the parameter."""
        return tensor.view(-1, *self.shape)[self.place]


@dataclass(frozen=True)
class _Run:
    """Matrices of one shape that a rank orthogonalizes together.

    `first` is where their updates begin in what the rank sends. `momentum` is there on their owner.
    """

    matrices: list[_Matrix]
    weights: list[Tensor]
    first: int
    momentum: Tensor | None  # (n, rows, cols)

    @property
    def shape(self) -> Shape:
        return self.matrices[0].shape

    @property
    def size(self) -> int:
        return sum(matrix.size for matrix in self.matrices)

    def among(self, updates: Tensor) -> Tensor:
        """Return the updates of these matrices, of what their rank sends: (n, rows, cols).

        Tall matrices are sent as they were orthogonalized: with columns as rows.
        """
        rows, cols = self.shape
        sent = updates[self.first : self.first + self.size].view(
            -1, min(rows, cols), max(self.shape)
        )
        return sent.mT if rows > cols else sent


@dataclass(frozen=True)
class _Round:
    """The runs of each rank, and how many elements each rank sends: those of the one with most."""

    runs: list[list[_Run]]
    elements: int


class SharedMuon(Muon):
    """Muon over named parameters, as muon.py's `Muon`, on the rank `rank` of several.

    `pieces` are this rank's momentum.
    """

    def __init__(
        self,
        params: dict[str, nn.Parameter],
        *,
        weight_decay: float,
        dtype: torch.dtype,
        rank: int,
        world_size: int,
    ) -> None:
        self.weight_decay, self.dtype = weight_decay, dtype
        self._rank, self._world_size = rank, world_size
        self.pieces: list[Piece] = []
        matrices = [
            _Matrix(name, param, place)
            for name, param in params.items()
            for place in range(param.numel() // (param.shape[-2] * param.shape[-1]))
        ]
        self._rounds = [
            self._round([[matrices[number] for number in numbers] for numbers in by_rank])
            for by_rank in _rounds([matrix.shape for matrix in matrices], world_size)
        ]

    def _round(self, by_rank: Sequence[Sequence[_Matrix]]) -> _Round:
        runs = [self._runs(rank, matrices) for rank, matrices in enumerate(by_rank)]
        elements = max(sum(matrix.size for matrix in matrices) for matrices in by_rank)
        return _Round(runs, elements)

    def _runs(self, rank: int, matrices: Sequence[_Matrix]) -> list[_Run]:
        """Return the runs of a rank in a round. This rank gets momentum for its own."""
        runs, first = [], 0
        for shape, alike in groupby(matrices, key=lambda matrix: matrix.shape):
            run, momentum = list(alike), None
            if rank == self._rank:
                momentum = torch.zeros((len(run), *shape), device=run[0].param.device)
                self.pieces += [
                    Piece(f"{matrix.name}.momentum", matrix.place * matrix.size, own.view(-1))
                    for matrix, own in zip(run, momentum, strict=True)
                ]
            weights = [matrix.of(matrix.param.detach()) for matrix in run]
            runs.append(_Run(run, weights, first, momentum))
            first += runs[-1].size
        return runs

    @torch.no_grad()
    def step(self, lr: float, momentum: float) -> None:
        """Update every parameter from its `.grad`.

        Every rank calls this. On a GPU the host does not wait.
        """
        under_way: tuple[_Round, Tensor, Tensor, Any] | None = None
        for part in self._rounds:
            sent = self._orthogonalized(part, momentum)
            got = sent.new_empty(self._world_size * part.elements)
            work = dist.all_gather_into_tensor(got, sent, async_op=True)
            if under_way is not None:
                self._apply(*under_way, lr=lr)
            under_way = part, got, sent, work
        if under_way is not None:
            self._apply(*under_way, lr=lr)

    def _orthogonalized(self, part: _Round, beta: float) -> Tensor:
        """Return the updates of this rank's matrices in a round, flat."""
        device = next(run.weights[0].device for runs in part.runs for run in runs)
        sent = torch.empty(part.elements, dtype=self.dtype, device=device)
        for run in part.runs[self._rank]:
            assert run.momentum is not None
            grads = torch.stack([matrix.of(_gradient(matrix.param)) for matrix in run.matrices])
            run.momentum.lerp_(grads, 1 - beta)
            run.among(sent).copy_(orthogonalize(grads.lerp_(run.momentum, beta), self.dtype))
        return sent

    def _apply(self, part: _Round, got: Tensor, sent: Tensor, work: Any, *, lr: float) -> None:
        """Change the weights of all matrices in a round by their updates, once they have come."""
        work.wait()
        by_rank = got.float().view(self._world_size, -1)
        weights: dict[Shape, list[Tensor]] = {}
        updates: dict[Shape, list[Tensor]] = {}
        for rank, runs in enumerate(part.runs):
            for run in runs:
                weights.setdefault(run.shape, []).extend(run.weights)
                updates.setdefault(run.shape, []).extend(run.among(by_rank[rank]).unbind())
        for shape, changed in weights.items():
            apply_update(changed, updates[shape], lr, self.weight_decay)


def shared_step_bytes(shapes: Sequence[Shape], width: int, ranks: int) -> int:
    """Return the most bytes at once of a step over matrices of these shapes, besides its state, on
    the rank that has the most.

    `width` is the bytes of an element in the iterations. While a round is orthogonalized, what the
    ranks have exchanged of the round before is there, too.
    """
    most = before = before_in_fp32 = 0
    for by_rank in _rounds(shapes, ranks):
        elements = max(sum(rows * cols for rows, cols in _of(shapes, own)) for own in by_rank)
        runs = [Counter(_of(shapes, own)) for own in by_rank]
        computing = max(
            4 * count * rows * cols + orthogonalize_bytes((rows, cols), count, width)
            for run in runs
            for (rows, cols), count in run.items()
        )
        exchanged = width * (ranks + 1) * elements
        most = max(
            most,
            before + width * elements + computing,
            before + exchanged + before_in_fp32,
        )
        before, before_in_fp32 = exchanged, 0 if width == 4 else 4 * ranks * elements
    return max(most, before + before_in_fp32)


def _rounds(shapes: Sequence[Shape], ranks: int) -> list[list[list[int]]]:
    """Return the numbers of the matrices of each rank in each round."""
    sizes = [rows * cols for rows, cols in shapes]
    return muon_rounds(deal_matrices(shapes, ranks), sizes, BATCH_ELEMENTS // ranks)


def _of(shapes: Sequence[Shape], numbers: Sequence[int]) -> list[Shape]:
    return [shapes[number] for number in numbers]


def _gradient(param: nn.Parameter) -> Tensor:
    assert param.grad is not None
    return param.grad
