"""Muon over several ranks: each matrix is orthogonalized whole, by the rank that owns it.

An owner has what is orthogonalized of its matrices in fp32, as one rank would have it. The results
are sent in the precision of the Newton–Schulz iterations. So the weights have the bits that one
rank would give them, as far as their gradients have. There are two ways to bring and to give back:

- `WholeMuon`: each rank has the whole model, and so has all that it orthogonalizes. All ranks get
  all results.
- `RowsMuon`: each rank of a sharded model has some rows of each matrix. The owner gets the rows of
  all ranks, and sends each rank its rows back: each element is exchanged twice.

There are rounds, so that the updates of all matrices are never in memory at once. The results of a
round are on their way while the next one is orthogonalized.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pion.train.optimizer.muon import Muon, apply_update, orthogonalize
from pion.train.optimizer.muon_rounds import Shape, elements, rounds_of
from pion.train.shard_rules import own_rows, sharded_dim


@dataclass(frozen=True)
class _Matrix:
    """A whole matrix of this `shape`, of which a rank of a sharded model has some rows.

    `param` and `momentum` are what this rank has of it, or a stack with that at `place`.
    """

    shape: Shape
    param: nn.Parameter
    momentum: Tensor
    place: int

    def of(self, tensor: Tensor) -> Tensor:
        """Return what this rank has of the matrix, of a tensor that is like the parameter."""
        return tensor[self.place] if tensor.ndim == 3 else tensor

    def gradient(self) -> Tensor:
        """Return the gradient of what this rank has."""
        assert self.param.grad is not None
        return self.of(self.param.grad)

    def direction(self, beta: float) -> Tensor:
        """Return what is orthogonalized of what this rank has, once the momentum has moved."""
        return self.gradient().lerp(self.of(self.momentum), beta)


# The matrices of a round, by the rank that owns them.
Round = Sequence[Sequence[_Matrix]]


class _Exchange(NamedTuple):
    """The updates that a rank has sent, and those that it has received once `work` is done."""

    sent: Tensor
    received: Tensor
    work: Any


class DividedMuon(Muon):
    """Muon over what this rank has of named parameters, which have these whole `shapes`.

    `momentum` has each parameter's buffer by name, like what the rank has.
    """

    def __init__(
        self,
        params: Mapping[str, nn.Parameter],
        shapes: Mapping[str, torch.Size],
        *,
        weight_decay: float,
        dtype: torch.dtype,
        rank: int,
        world_size: int,
    ) -> None:
        self.weight_decay, self.dtype = weight_decay, dtype
        self._rank, self._ranks = rank, world_size
        divided = {name for name, shape in shapes.items() if self._is_divided(shape)}
        alone = {n: param for n, param in params.items() if n not in divided and param.numel()}
        self._alone = Muon(alone, weight_decay=weight_decay, dtype=dtype)
        self.momentum = self._alone.momentum | {
            n: torch.zeros_like(param.detach()) for n, param in params.items() if n not in alone
        }
        matrices = [
            _Matrix((shapes[name][-2], shapes[name][-1]), param, self.momentum[name], place)
            for name, param in params.items()
            if name in divided
            for place in range(shapes[name][:-2].numel())
        ]
        self._rounds: list[Round] = [
            [[matrices[number] for number in numbers] for numbers in by_owner]
            for by_owner in rounds_of([matrix.shape for matrix in matrices], world_size)
        ]

    @torch.no_grad()
    def step(self, lr: float, momentum: float) -> None:
        """Update what this rank has of every parameter, from its `.grad`.

        Every rank calls this. On a GPU the host does not wait.
        """
        self._alone.step(lr, momentum)
        under_way: tuple[Round, _Exchange] | None = None
        for by_owner in self._rounds:
            every = list(chain(*by_owner))
            buffers = [matrix.of(matrix.momentum) for matrix in every]
            torch._foreach_lerp_(buffers, [matrix.gradient() for matrix in every], 1 - momentum)
            updates = self._orthogonalized(self._bring(by_owner, momentum))
            exchange = self._give_back(by_owner, list(updates))
            if under_way is not None:
                self._apply(*under_way, lr)
            under_way = by_owner, exchange
        if under_way is not None:
            self._apply(*under_way, lr)

    def _orthogonalized(self, directions: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the orthogonalized matrices. Those of one shape follow each other: one batch."""
        for _, alike in groupby(directions, key=lambda direction: direction.shape):
            yield from orthogonalize(torch.stack(list(alike)), self.dtype)

    def _joined(self, updates: Iterable[Tensor], by_owner: Round, spare: int = 0) -> Tensor:
        """Return updates of a round, flat, and room for so many elements more."""
        room = torch.empty(spare, dtype=self.dtype, device=next(chain(*by_owner)).param.device)
        return torch.cat([*(update.reshape(-1) for update in updates), room])

    def _apply(self, by_owner: Round, exchange: _Exchange, lr: float) -> None:
        """Change what this rank has of the matrices of a round, once their updates have come."""
        exchange.work.wait()
        parts = self._parts(by_owner, exchange.received.float())
        weights: dict[Shape, list[Tensor]] = defaultdict(list)
        updates: dict[Shape, list[Tensor]] = defaultdict(list)
        for matrix, part in zip(chain(*by_owner), parts, strict=True):
            weights[matrix.shape].append(matrix.of(matrix.param.detach()))
            updates[matrix.shape].append(part)
        for shape, changed in weights.items():
            apply_update(changed, updates[shape], lr, self.weight_decay, shape)

    def _is_divided(self, shape: torch.Size) -> bool:
        """Return whether ranks divide the matrices of a parameter of this whole shape. Of any other
        parameter, a rank updates by itself what it has."""
        return True

    @abstractmethod
    def _bring(self, by_owner: Round, beta: float) -> Iterable[Tensor]:
        """Return what this rank orthogonalizes in a round: whole matrices, in order."""

    @abstractmethod
    def _give_back(self, by_owner: Round, updates: Sequence[Tensor]) -> _Exchange:
        """Begin to send the updates of this rank's matrices."""

    @abstractmethod
    def _parts(self, by_owner: Round, received: Tensor) -> Iterable[Tensor]:
        """Return what has come for this rank's part of each matrix of a round, in order."""


class WholeMuon(DividedMuon):
    """Muon where each rank has the whole model, and the same gradients as the others."""

    def _bring(self, by_owner: Round, beta: float) -> Iterable[Tensor]:
        return (matrix.direction(beta) for matrix in by_owner[self._rank])

    def _give_back(self, by_owner: Round, updates: Sequence[Tensor]) -> _Exchange:
        sizes = [elements(matrix.shape for matrix in owned) for owned in by_owner]
        # Each rank sends as much as the one that has the most.
        sent = self._joined(updates, by_owner, spare=max(sizes) - sizes[self._rank])
        received = sent.new_empty(self._ranks * len(sent))
        work = dist.all_gather_into_tensor(received, sent, async_op=True)
        return _Exchange(sent, received, work)

    def _parts(self, by_owner: Round, received: Tensor) -> Iterable[Tensor]:
        for owned, updates in zip(by_owner, received.view(self._ranks, -1), strict=True):
            yield from _cut(updates, [matrix.shape for matrix in owned])


class RowsMuon(DividedMuon):
    """Muon over the rows that this rank of a sharded model has of each matrix.

    A stack may be cut between its matrices. These are whole where they are, and not exchanged.
    """

    def _is_divided(self, shape: torch.Size) -> bool:
        return len(shape) == 2 or sharded_dim(shape, self._ranks, "matrix") == 1

    def _bring(self, by_owner: Round, beta: float) -> Iterable[Tensor]:
        sent = torch.cat([matrix.direction(beta).reshape(-1) for matrix in chain(*by_owner)])
        to_owners, from_ranks = self._sizes(by_owner)
        received = sent.new_empty(sum(from_ranks))
        dist.all_to_all_single(received, sent, from_ranks, to_owners)
        by_rank = [
            _cut(rows, self._rows(by_owner[self._rank], rank))
            for rank, rows in enumerate(received.split(from_ranks))
        ]
        return [torch.cat(rows) for rows in zip(*by_rank, strict=True)]

    def _give_back(self, by_owner: Round, updates: Sequence[Tensor]) -> _Exchange:
        rows = (
            update[own.start : own.stop]
            for rank in range(self._ranks)
            for update in updates
            for own in [own_rows(len(update), rank, self._ranks)]
        )
        sent = self._joined(rows, by_owner)
        to_owners, from_ranks = self._sizes(by_owner)
        received = sent.new_empty(sum(to_owners))
        work = dist.all_to_all_single(received, sent, to_owners, from_ranks, async_op=True)
        return _Exchange(sent, received, work)

    def _parts(self, by_owner: Round, received: Tensor) -> Iterable[Tensor]:
        return _cut(received, self._rows(list(chain(*by_owner)), self._rank))

    def _sizes(self, by_owner: Round) -> tuple[list[int], list[int]]:
        """Return how many elements this rank has of the matrices of each owner; and each rank, of
        this rank's matrices."""
        mine = by_owner[self._rank]
        return (
            [elements(self._rows(owned, self._rank)) for owned in by_owner],
            [elements(self._rows(mine, rank)) for rank in range(self._ranks)],
        )

    def _rows(self, matrices: Sequence[_Matrix], rank: int) -> list[Shape]:
        """Return the shapes of what a rank has of matrices."""
        return [
            (len(own_rows(rows, rank, self._ranks)), cols)
            for rows, cols in (matrix.shape for matrix in matrices)
        ]


def _cut(flat: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """Return the matrices of these shapes that are one after the other in a tensor, which may be
    longer."""
    sizes = [rows * cols for rows, cols in shapes]
    parts = flat[: sum(sizes)].split(sizes)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
