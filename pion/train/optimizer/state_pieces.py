"""State tensors by name: whole, as one rank and a checkpoint have them, or in pieces over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pion.errors import BadInput


@dataclass(frozen=True)
class Piece:
    """What a rank has of the state tensor `name`: its flattened elements from `start` on.

    `values` is flat, and a live reference. If several ranks have the same elements, one of them
    saves them: the pieces of the others are not `saved`.
    """

    name: str
    start: int
    values: Tensor
    saved: bool = True

    def within(self, whole: Tensor) -> Tensor:
        """Return the same elements of `whole`, a tensor that has all elements of `name`."""
        return whole.view(-1)[self.start : self.start + self.values.numel()]


class Run(NamedTuple):
    """Consecutive elements that a rank has of a tensor.

    Attributes:
        whole: the number of the first of them in the flattened whole tensor.
        own: the number of the first of them in the flattened tensor that the rank has.
        size: how many there are.
    """

    whole: int
    own: int
    size: int


@dataclass(frozen=True)
class Held:
    """What a rank has of a tensor of this `shape`.

    Attributes:
        shape: the shape of the whole tensor.
        runs: all elements that the rank has.
        saved: whether this rank saves them. Each element is saved by one rank.
    """

    shape: torch.Size
    runs: tuple[Run, ...]
    saved: bool = True

    def pieces(self, name: str, own: Tensor) -> list[Piece]:
        """Return what this rank has of the tensor `name`: `own`, as pieces."""
        flat = own.view(-1)
        return [
            Piece(name, run.whole, flat[run.own : run.own + run.size], self.saved)
            for run in self.runs
            if run.size
        ]

    def per(self, size: int) -> Held:
        """Return what the rank has of a tensor with one element for `size` elements of this one."""
        runs = tuple(Run(*(number // size for number in run)) for run in self.runs)
        return Held(torch.Size((self.shape.numel() // size,)), runs, self.saved)


@dataclass(frozen=True)
class OwnParts:
    """What a rank has of the parameters that a sharded model learns (pion/train/sharding.py).

    Attributes:
        params: the rank's part of each parameter, as a parameter with its part of the gradient.
        held: which elements of the whole parameter these are.
    """

    params: dict[str, nn.Parameter]
    held: dict[str, Held]


def check_tensors(source: Mapping[str, Tensor], target: Mapping[str, Tensor], what: str) -> None:
    """Raise BadInput unless both have tensors of the same names and shapes."""
    for kind, names in (
        ("has no tensor", target.keys() - source.keys()),
        ("has the unexpected tensor", source.keys() - target.keys()),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise BadInput(f"the {what} {kind} {min(names)}{more}: it belongs to a different model")
    for name, tensor in source.items():
        if tensor.shape != target[name].shape:
            raise BadInput(
                f"the {what}'s {name} has shape {tuple(tensor.shape)} instead of "
                f"{tuple(target[name].shape)}: it belongs to a different model"
            )


@torch.no_grad()
def copy_tensors(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Copy tensors by name into existing ones."""
    for name, tensor in source.items():
        target[name].copy_(tensor)


@torch.no_grad()
def copy_from_rank_0(tensors: Iterable[Tensor], device: torch.device) -> None:
    """Overwrite tensors with rank 0's, one by one on the device. Those on `meta` stay as they are.

    Every rank calls this.
    """
    for tensor in tensors:
        if not tensor.is_meta:
            there = tensor.detach().to(device)
            dist.broadcast(there, src=0)
            tensor.copy_(there)


@torch.no_grad()
def hand_out(
    source: Mapping[str, Tensor] | None,
    targets: Mapping[str, Tensor],
    pieces: Iterable[Piece],
    device: torch.device,
) -> None:
    """Overwrite what each rank has by rank 0's whole tensors.

    Every rank calls this: rank 0 with the `source`, the others with None. A rank has the `targets`
    whole, or `pieces` of those on the device `meta`. A rank gets one whole tensor at a time, on its
    `device`.
    """
    by_name: dict[str, list[Piece]] = {name: [] for name in targets}
    for piece in pieces:
        by_name[piece.name].append(piece)
    for name in sorted(targets):
        whole = torch.empty_like(targets[name], device=device)
        if source is not None:
            whole.copy_(source[name])
        dist.broadcast(whole, src=0)
        if not targets[name].is_meta:
            targets[name].copy_(whole)
        for piece in by_name[name]:
            piece.values.copy_(piece.within(whole))
