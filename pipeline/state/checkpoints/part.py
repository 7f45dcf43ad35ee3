"""What one of several ranks saves of a model that they have in parts.

The files of a part are described in pion/formats/parts.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pion.errors import BadInput
from pion.formats.parts import (
    MODEL,
    MOST_PARTS,
    OPTIMIZER,
    Elements,
    part_metadata,
    part_name,
    sources,
)

if TYPE_CHECKING:
    from torch import Tensor

    from pion.train.optimizer.state_pieces import Piece
    from pion.train.trainer import TrainState

Tensors = Mapping[str, "Tensor"]


@dataclass(frozen=True)
class CheckpointPart:
    """The part of `rank` of `count` ranks.

    By kind of file, `elements` says which elements it has, and `names` which tensors there are.
    """

    rank: int
    count: int
    elements: Mapping[str, Mapping[str, Elements]]
    names: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, rank: int, count: int, state: TrainState) -> CheckpointPart:
        """Return the part of a rank that has the pieces in `state`.

        Raises BadInput if there are more ranks than a checkpoint can have parts.
        """
        if count > MOST_PARTS:
            raise BadInput(
                f"{count:,} workers have the model in parts, but a checkpoint has at most "
                f"{MOST_PARTS} parts. Nothing was changed. Use fewer workers"
            )
        model = _elements(rank, state.model, state.model_pieces)
        optimizer = _elements(rank, state.optimizer, state.pieces)
        names = {MODEL: frozenset(state.model), OPTIMIZER: frozenset(state.optimizer)}
        return cls(rank, count, {MODEL: model, OPTIMIZER: optimizer}, names)

    def file(self, kind: str) -> str:
        """Return the name of the part's file of this kind."""
        return part_name(kind, self.rank, self.count)

    def metadata(self, kind: str) -> dict[str, str]:
        """Return the metadata in the header of this file."""
        return part_metadata(self.rank, self.count, self.elements[kind])

    def flat(self, kind: str, whole: Tensors) -> dict[str, Tensor]:
        """Return tensors without values, of the shapes and dtypes in this file."""
        return {
            name: whole[name].new_empty(own.count, device="meta")
            for name, own in self.elements[kind].items()
        }


def require_whole(parts: Sequence[CheckpointPart]) -> None:
    """Raise BadInput unless the parts of all ranks, in order, have each element once."""
    where = "the checkpoint to save"
    for kind in (MODEL, OPTIMIZER):
        found = sources(where, {part.file(kind): part.elements[kind] for part in parts})
        if missing := parts[0].names[kind] - found.keys():
            raise BadInput(f"{where}: {min(missing)} is in no part")


def copies(into: Tensors, pieces: Sequence[Piece]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield, for each piece, its elements of a part's flat tensors `into`, and its values."""
    place: dict[str, int] = {}
    for piece in _in_order(pieces):
        begin = place.get(piece.name, 0)
        place[piece.name] = begin + piece.values.numel()
        yield into[piece.name][begin : place[piece.name]], piece.values


def _elements(rank: int, whole: Tensors, pieces: Sequence[Piece]) -> dict[str, Elements]:
    ranges: dict[str, list[tuple[int, int]]] = {}
    for piece in _in_order(pieces):
        ranges.setdefault(piece.name, []).append((piece.start, piece.start + piece.values.numel()))
    if rank == 0:  # a tensor without elements is in no rank's pieces
        for name in (name for name, tensor in whole.items() if tensor.numel() == 0):
            ranges.setdefault(name, [])
    return {
        name: Elements(tuple(whole[name].shape), tuple(found)) for name, found in ranges.items()
    }


def _in_order(pieces: Sequence[Piece]) -> list[Piece]:
    """Return the pieces that have elements, by name and place."""
    some = (piece for piece in pieces if piece.values.numel())
    return sorted(some, key=lambda piece: (piece.name, piece.start))
