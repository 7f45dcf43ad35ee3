"""The tensors in a model's folder: one file, or transformers' shards.

Tensors are read when somebody asks for their elements.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pion.errors import BadInput
from pion.formats.weights import INDEX, WEIGHTS, no_weights, read_tensors, shards_of
from pion.later_fields import shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Rows(NamedTuple):
    """The rows [first, last) of a tensor; without `last`, the whole tensor."""

    name: str
    first: int = 0
    last: int | None = None


class SavedTensors:
    """The tensors of a checkpoint on this machine, read when somebody asks for their elements.

    `parts` has the shape of each tensor by name, and all of its elements in order: flat tensors
    that are mapped from the files, or are in memory.
    """

    def __init__(self, parts: Mapping[str, tuple[torch.Size, list[Tensor]]]) -> None:
        self._parts = parts

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> SavedTensors:
        """Return these whole tensors."""
        return cls({name: (each.shape, [each.reshape(-1)]) for name, each in tensors.items()})

    def joined(self, sources: Mapping[str, tuple[torch.Size, list[Rows]]]) -> SavedTensors:
        """Return tensors of these shapes: each is rows of one of these tensors, or of several one
        after the other."""
        return SavedTensors(
            {
                name: (shape, [part for rows in some for part in self._rows(*rows)])
                for name, (shape, some) in sources.items()
            }
        )

    def _rows(self, name: str, first: int, last: int | None) -> list[Tensor]:
        """Return the elements of the rows [first, last) of a tensor, flat; all if there is no
        `last`."""
        shape, parts = self._parts[name]
        if last is None:
            return parts
        return [self.part(name, *(row * shape[1:].numel() for row in (first, last)))]

    def layout(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Return the shape and the dtype of each whole tensor."""
        return {name: (shape, parts[0].dtype) for name, (shape, parts) in self._parts.items()}

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Return the elements [start, stop) of the flattened tensor, flat.

        They are mapped from a file if they follow each other there. Other elements are copied.
        """
        import torch

        parts = self._parts[name][1]
        slices, begin = [], 0
        for part in parts:
            end = begin + part.numel()
            if begin < stop and start < end:
                slices.append(part[max(start - begin, 0) : stop - begin])
            begin = end
        if len(slices) == 1:
            return slices[0]
        return torch.cat(slices) if slices else parts[0][:0]


def saved_model_tensors(folder: Path) -> SavedTensors:
    """Return the tensors of a model's folder, mapped from its files.

    If one file has all tensors, an index is not read, as in transformers. Raises BadInput
    that names the file for a missing or damaged file and for an index that no model has, and
    BadInput for a folder with pickles only.
    """
    try:
        in_shards = (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file()
    except OSError as error:
        raise BadInput(f"{folder} can't be read ({error.strerror or error})") from None
    if not in_shards:
        try:
            return SavedTensors.of(_read_whole(folder))
        except FileNotFoundError:
            raise no_weights(folder) from None
    shard_of = shards_of(folder / INDEX)
    tensors = {
        shard: read_tensors(
            folder / shard,
            f"{folder}: {shard} is missing, but {INDEX} names it. Download the model again",
        )
        for shard in sorted(set(shard_of.values()))
    }
    for name, shard in shard_of.items():
        if name not in tensors[shard]:
            raise BadInput(
                f"{folder}: {shard} has no tensor {shown(name)}, but {INDEX} expects it there. The "
                "files are of different models: download the model again"
            )
    return SavedTensors.of({name: tensors[shard][name] for name, shard in shard_of.items()})


def read_adapter_tensors(folder: Path) -> dict[str, Tensor]:
    """Return the tensors that LoRA has trained, in a checkpoint's folder. Raises BadInput as
    `saved_model_tensors` does."""
    try:
        return _read_whole(folder)
    except FileNotFoundError:
        raise BadInput(f"{folder} is not an adapter: it has no {WEIGHTS}") from None


def _read_whole(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of the only file. Raises FileNotFoundError if there is none."""
    path = folder / WEIGHTS
    try:
        path.lstat()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadInput(f"{folder} can't be read ({error.strerror or error})") from None
    return read_tensors(
        path,
        f"{path} was deleted while it was read, or is a link to a file that is gone. Bring it "
        "back, or run the same command again",
    )
