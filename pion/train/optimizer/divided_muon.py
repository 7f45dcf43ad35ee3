"""Muon over several ranks: each matrix is orthogonalized whole, by the rank that owns it.

An owner gets what is orthogonalized of its matrices in fp32, as one rank would have it, and sends
the results in the precision of the Newton–Schulz iterations. So the weights have the bits that one
rank would give them, as far as their gradients have. There are two ways to bring and to give back:

- `WholeMuon`: each rank has the whole model. The owner has all that it needs. All ranks get the
  results of a round while they compute the next one.
- `RowsMuon`: each rank of a sharded model has some rows of each matrix. The owner gets the rows of
  all ranks, and sends each rank its rows back: each element is exchanged twice.

There are rounds, so that the updates of all matrices are never in memory at once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pion.train.optimizer.muon import Muon, apply_update, orthogonalize
from pion.train.optimizer.ownership import Shape, muon_rounds
from pion.train.shard_rules import own_rows


@dataclass(frozen=True)
class _Matrix:
    """A whole matrix of this `shape`, of which a rank of a sharded model has some rows.

    `param` and `momentum` are what this rank has of it, or a stack with that at `place`.
    """

    shape: Shape
    param: nn.Parameter
    momentum: Tensor
    place: int

    @property
    def size(self) -> int:
        return self.shape[0] * self.shape[1]

    def of(self, tensor: Tensor) -> Tensor:
        """Return what this rank has of the matrix, of a tensor that is like the parameter."""
        return tensor[self.place] if tensor.ndim == 3 else tensor

    def gradient(self) -> Tensor:
        """Return the gradient of what this rank has."""
        assert self.param.grad is not None
        return self.of(self.param.grad)


# The matrices of a round, by the rank that owns them.
Round = Sequence[Sequence[_Matrix]]


class DividedMuon(Muon):
    """Muon over what this rank has of named parameters, which have these whole `shapes`.

    `momentum` has each parameter's buffer by name, like what the rank has. All ranks call `step`
    together. On a GPU the host does not wait.
    """

    # How many rounds may be computed before the updates of the first of them are applied.
    ahead: ClassVar[int] = 0

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
        self._rank, self._ranks, self._params = rank, world_size, list(params.values())
        self.momentum = {name: torch.zeros_like(param.detach()) for name, param in params.items()}
        matrices = [
            _Matrix((shapes[name][-2], shapes[name][-1]), param, self.momentum[name], place)
            for name, param in params.items()
            for place in range(shapes[name][:-2].numel())
        ]
        self._rounds: list[Round] = [
            [[matrices[number] for number in numbers] for numbers in by_owner]
            for by_owner in muon_rounds([matrix.shape for matrix in matrices], world_size)
        ]

    @torch.no_grad()
    def step(self, lr: float, momentum: float) -> None:
        """Update what this rank has of every parameter, from its `.grad`."""
        under_way: list[tuple[Round, Callable[[], list[Tensor]]]] = []
        for by_owner in self._rounds:
            under_way.append((by_owner, self._exchange(by_owner, momentum)))
            if len(under_way) > self.ahead:
                self._apply(*under_way.pop(0), lr=lr)
        for by_owner, arrived in under_way:
            self._apply(by_owner, arrived, lr=lr)

    @abstractmethod
    def _exchange(self, by_owner: Round, beta: float) -> Callable[[], list[Tensor]]:
        """Orthogonalize this rank's matrices of a round, and begin to exchange the results.

        Return what waits for the updates in fp32: of what this rank has of each matrix, in order.
        """

    def _apply(self, by_owner: Round, arrived: Callable[[], list[Tensor]], *, lr: float) -> None:
        """Change what this rank has of all matrices of a round."""
        matrices = [matrix for owned in by_owner for matrix in owned]
        weights: dict[Shape, list[Tensor]] = defaultdict(list)
        updates: dict[Shape, list[Tensor]] = defaultdict(list)
        for matrix, update in zip(matrices, arrived(), strict=True):
            weights[matrix.shape].append(matrix.of(matrix.param.detach()))
            updates[matrix.shape].append(update)
        for shape, changed in weights.items():
            apply_update(changed, updates[shape], lr, self.weight_decay, shape)


class WholeMuon(DividedMuon):
    """Muon where each rank has the whole model, and the same gradients as the others.

    Each rank moves the momentum of all matrices, which is little work. So each has the whole state.
    """

    ahead = 1

    @torch.no_grad()
    def step(self, lr: float, momentum: float) -> None:
        """Update every parameter from its `.grad`."""
        gradients = [param.grad for param in self._params if param.grad is not None]
        torch._foreach_lerp_(list(self.momentum.values()), gradients, 1 - momentum)
        super().step(lr, momentum)

    def _exchange(self, by_owner: Round, beta: float) -> Callable[[], list[Tensor]]:
        elements = max(sum(matrix.size for matrix in owned) for owned in by_owner)
        sent = torch.empty(elements, dtype=self.dtype, device=_device(by_owner))
        targets = iter(_matrices_in(sent, by_owner[self._rank]))
        for alike in _alike(by_owner[self._rank]):
            self._orthogonalize(alike, list(islice(targets, len(alike))), beta)
        gathered = sent.new_empty(self._ranks * elements)
        work = dist.all_gather_into_tensor(gathered, sent, async_op=True)
        return partial(self._arrived, by_owner, gathered, sent, work)

    def _orthogonalize(self, alike: Sequence[_Matrix], targets: list[Tensor], beta: float) -> None:
        """Write the updates of matrices of one shape into the targets."""
        directions = torch.stack([matrix.gradient() for matrix in alike])
        buffers = [matrix.of(matrix.momentum) for matrix in alike]
        torch._foreach_lerp_(list(directions.unbind()), buffers, beta)
        torch._foreach_copy_(targets, list(orthogonalize(directions, self.dtype).unbind()))

    def _arrived(self, by_owner: Round, gathered: Tensor, sent: Tensor, work: Any) -> list[Tensor]:
        """Return the updates that all ranks have `sent`, once they are here."""
        work.wait()
        by_rank = gathered.float().view(self._ranks, -1)
        return [
            update
            for owned, updates in zip(by_owner, by_rank, strict=True)
            for update in _matrices_in(updates, owned)
        ]


class RowsMuon(DividedMuon):
    """Muon over the rows that this rank of a sharded model has of each matrix.

    The matrices of a stack that is cut between them are whole where they are, and not exchanged.
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
        here = {n: p for n, p in params.items() if len(shapes[n]) == 3 and _is_whole(p, shapes[n])}
        others = {name: param for name, param in params.items() if name not in here}
        super().__init__(
            others,
            shapes,
            weight_decay=weight_decay,
            dtype=dtype,
            rank=rank,
            world_size=world_size,
        )
        some = {name: param for name, param in here.items() if param.numel()}
        self._here = Muon(some, weight_decay=weight_decay, dtype=dtype)
        empty = {n: torch.zeros_like(p.detach()) for n, p in here.items() if n not in some}
        self.momentum |= self._here.momentum | empty

    @torch.no_grad()
    def step(self, lr: float, momentum: float) -> None:
        """Update this rank's parts from their `.grad`."""
        self._here.step(lr, momentum)
        super().step(lr, momentum)

    def _exchange(self, by_owner: Round, beta: float) -> Callable[[], list[Tensor]]:
        every, mine = [matrix for owned in by_owner for matrix in owned], by_owner[self._rank]
        # What this rank has of the matrices of each owner; and what it gets from each rank.
        given = [sum(self._size(m, self._rank) for m in matrices) for matrices in by_owner]
        taken = [sum(self._size(m, rank) for m in mine) for rank in range(self._ranks)]
        sent = torch.cat([_direction(matrix, beta).reshape(-1) for matrix in every])
        rows = sent.new_empty(sum(taken))
        dist.all_to_all_single(rows, sent, taken, given)
        by_rank = [
            of_rank.split([self._size(matrix, rank) for matrix in mine])
            for rank, of_rank in enumerate(rows.split(taken))
        ]
        directions = [
            torch.cat([parts[number] for parts in by_rank]).view(matrix.shape)
            for number, matrix in enumerate(mine)
        ]
        updates = list(self._orthogonalized(directions))
        back = [
            update[rows_of.start : rows_of.stop].reshape(-1)
            for rank in range(self._ranks)
            for update in updates
            for rows_of in [own_rows(len(update), rank, self._ranks)]
        ]
        sent = torch.cat(back) if back else rows.to(self.dtype)
        result = sent.new_empty(sum(given))
        dist.all_to_all_single(result, sent, given, taken)
        return partial(self._parts, every, result)

    def _orthogonalized(self, directions: Sequence[Tensor]) -> Iterator[Tensor]:
        """Yield the orthogonalized matrices. Those of one shape follow each other: one batch."""
        for _, alike in groupby(directions, key=lambda direction: direction.shape):
            yield from orthogonalize(torch.stack(list(alike)), self.dtype)

    def _parts(self, matrices: Sequence[_Matrix], result: Tensor) -> list[Tensor]:
        """Return the rows that this rank has of the updates of these matrices."""
        parts = result.float().split([self._size(matrix, self._rank) for matrix in matrices])
        return [
            part.view(-1, matrix.shape[1]) for part, matrix in zip(parts, matrices, strict=True)
        ]

    def _size(self, matrix: _Matrix, rank: int) -> int:
        """Return how many elements a rank has of a matrix."""
        rows, cols = matrix.shape
        return len(own_rows(rows, rank, self._ranks)) * cols


def _device(by_owner: Round) -> torch.device:
    return next(matrix.param.device for owned in by_owner for matrix in owned)


def _alike(matrices: Sequence[_Matrix]) -> list[list[_Matrix]]:
    """Return the matrices of one shape, which follow each other, together."""
    return [list(alike) for _, alike in groupby(matrices, key=lambda matrix: matrix.shape)]


def _matrices_in(flat: Tensor, matrices: Sequence[_Matrix]) -> list[Tensor]:
    """Return the matrices that lie one behind the other in a tensor, which may be longer.

    Tall matrices lie there as they were orthogonalized: with columns as rows.
    """
    sizes = [matrix.size for matrix in matrices]
    shapes = [matrix.shape for matrix in matrices]
    return [
        part.view(cols, rows).mT if rows > cols else part.view(rows, cols)
        for part, (rows, cols) in zip(flat[: sum(sizes)].split(sizes), shapes, strict=True)
    ]


def _is_whole(param: nn.Parameter, shape: torch.Size) -> bool:
    """Return whether the matrices that a rank has of a stack are whole."""
    return not param.numel() or param.shape[1:] == shape[1:]


def _direction(matrix: _Matrix, beta: float) -> Tensor:
    """Move the momentum of this rank's rows, and return what is orthogonalized of them."""
    gradient, momentum = matrix.gradient(), matrix.of(matrix.momentum)
    momentum.lerp_(gradient, 1 - beta)
    return gradient.lerp(momentum, beta)
