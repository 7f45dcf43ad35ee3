"""The tensors of a model's files, read when somebody asks for their elements, or in memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


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

    def joined(self, sources: Mapping[str, tuple[torch.Size, list[str]]]) -> SavedTensors:
        """Return tensors of these shapes: each is one of these tensors, or several one after the
        other."""
        return SavedTensors(
            {
                name: (shape, [part for source in some for part in self._parts[source][1]])
                for name, (shape, some) in sources.items()
            }
        )

    def layout(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Return the shape and the dtype of each whole tensor."""
        return {name: (shape, parts[0].dtype) for name, (shape, parts) in self._parts.items()}

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Return the elements [start, stop) of the flattened tensor, flat.

        They are mapped from a file if they follow each other there. Other elements are copied.
        """
        import torch

        parts = self._parts[name][1]
        found, begin = [], 0
        for part in parts:
            end = begin + part.numel()
            if begin < stop and start < end:
                found.append(part[max(start - begin, 0) : stop - begin])
            begin = end
        if len(found) == 1:
            return found[0]
        return torch.cat(found) if found else parts[0][:0]
