"""Weights that are read when somebody needs them, so that no process has to hold a whole model."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from pion.config.model_config import ModelConfig
from pion.model.decoder import Decoder

Layout = Mapping[str, tuple[torch.Size, torch.dtype]]


class Saved(Protocol):
    """Saved tensors, of which a rank reads only the elements that it needs."""

    def layout(self) -> Layout:
        """Return the shape and the dtype of each whole tensor, by name."""

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Return the elements [start, stop) of a flattened tensor, on any device."""


class Tensors(Mapping[str, Tensor]):
    """The tensors of `saved` by their names, and those of `others` that it lacks.

    Each is read whole when it is asked for, and is not kept.
    """

    def __init__(self, saved: Saved, others: Mapping[str, Tensor] | None = None) -> None:
        self._saved = saved
        self._shapes = {name: shape for name, (shape, _) in saved.layout().items()}
        every = (others or {}).items()
        self._others = {name: tensor for name, tensor in every if name not in self._shapes}

    def __getitem__(self, name: str) -> Tensor:
        if name in self._others:
            return self._others[name]
        shape = self._shapes[name]
        return self._saved.part(name, 0, shape.numel()).view(shape)

    def __iter__(self) -> Iterator[str]:
        return itertools.chain(self._shapes, self._others)

    def __len__(self) -> int:
        return len(self._shapes) + len(self._others)


def placeholders(layout: Layout) -> dict[str, Tensor]:
    """Return tensors of this layout without values, on the device `meta`."""
    return {n: torch.empty(shape, dtype=dt, device="meta") for n, (shape, dt) in layout.items()}


@dataclass(frozen=True)
class Changed:
    """Saved tensors of which only those of `shapes` are taken, and which may be cut; and new ones.

    A tensor that is in both is new.
    """

    saved: Saved
    shapes: Mapping[str, torch.Size]
    new: Mapping[str, Tensor] = field(default_factory=dict)

    def layout(self) -> Layout:
        """Return the shape and the dtype of each tensor, by name."""
        of_saved = self.saved.layout()
        layout = {name: (shape, of_saved[name][1]) for name, shape in self.shapes.items()}
        return layout | {name: (tensor.shape, tensor.dtype) for name, tensor in self.new.items()}

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Return the elements [start, stop) of a flattened tensor."""
        if name in self.new:
            return self.new[name].reshape(-1)[start:stop]
        return self.saved.part(name, start, stop)


@dataclass(frozen=True)
class Rounded:
    """Saved tensors of which those named `names` are rounded to bfloat16."""

    saved: Saved
    names: Collection[str]

    def layout(self) -> Layout:
        """Return the shape and the dtype of each tensor, by name."""
        return {
            name: (shape, torch.bfloat16 if name in self.names else dtype)
            for name, (shape, dtype) in self.saved.layout().items()
        }

    def part(self, name: str, start: int, stop: int) -> Tensor:
        """Return the elements [start, stop) of a flattened tensor."""
        values = self.saved.part(name, start, stop)
        return values.float().bfloat16() if name in self.names else values


def without_values(config: ModelConfig) -> Decoder:
    """Return a decoder whose weights are still to be read: they are on the device `meta`."""
    with torch.device("meta"):
        return Decoder(config)
