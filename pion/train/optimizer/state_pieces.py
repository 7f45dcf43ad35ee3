"""State tensors by name: whole, as one rank and a checkpoint have them, or in pieces over ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from pion.errors import BadInput


@dataclass(frozen=True)
class Piece:
    """What a rank has of the state tensor `name`: its flattened elements from `start` on.

    `values` is flat, and a live reference.
    """

    name: str
    start: int
    values: Tensor

    def within(self, whole: Tensor) -> Tensor:
        """Return the same elements of `whole`, a tensor that has all elements of `name`."""
        return whole.view(-1)[self.start : self.start + self.values.numel()]


def check_tensors(source: dict[str, Tensor], target: dict[str, Tensor], what: str) -> None:
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
def hand_out(
    source: Mapping[str, Tensor] | None,
    layout: Mapping[str, Tensor],
    pieces: Iterable[Piece],
    device: torch.device,
) -> None:
    """Overwrite each rank's pieces by those elements of rank 0's whole tensors.

    Every rank calls this: rank 0 with the `source`, the others with None. `layout` has the shapes
    and dtypes of all tensors, which need no values. A rank has one whole tensor at a time, on its
    `device`.
    """
    by_name: dict[str, list[Piece]] = {name: [] for name in layout}
    for piece in pieces:
        by_name[piece.name].append(piece)
    for name in sorted(layout):
        whole = torch.empty_like(layout[name], device=device)
        if source is not None:
            whole.copy_(source[name])
        dist.broadcast(whole, src=0)
        for piece in by_name[name]:
            piece.values.copy_(piece.within(whole))
