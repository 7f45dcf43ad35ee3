"""Compute the next token of each row of a cache by operations that are the same in every step.

Their tensors keep their shapes and their addresses: those of the cache, and one that has what
differs from step to step. So a CUDA graph of these operations can be replayed (step_graphs.py). A
row attends to all entries of the cache, and a mask hides those that it does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pion.model.attention.cache import KVCache, Place
from pion.model.attention.rope import tables_of
from pion.model.decoder import Decoder

# A row attends to a power of two of entries, from this number on: to at most twice as many as it
# has.
LEAST_ENTRIES = 512


class Shape(NamedTuple):
    """What decides the shapes of a step.

    Attributes:
        rows: how many rows of the cache are continued, from the first on.
        entries: each row has at most so many tokens after the step.
        fills: whether a row's token brings entries behind the text (slots), which are computed.
    """

    rows: int
    entries: int
    fills: bool


def shape_of(cache: KVCache, rows: int) -> Shape:
    """Return the shape of the next step of the first `rows` rows."""
    longest = max(cache.lengths[:rows]) + 1
    entries = min(cache.max_tokens, max(LEAST_ENTRIES, 1 << (longest - 1).bit_length()))
    return Shape(rows, entries, any(segment >= 0 for segment in _filled(cache, rows)))


class FixedStep:
    """The steps of one shape. `cache` has room for all rows, and has been written to."""

    def __init__(self, model: Decoder, cache: KVCache, shape: Shape) -> None:
        self._model, self._cache, self._shape = model, cache, shape
        # Of each row: the token, its position, and the number of the entries that it brings, or −1.
        count = 2 + shape.fills
        device = model.embed.weight.device
        self._given = torch.zeros(count, shape.rows, dtype=torch.int64, device=device)
        # A graph reads these tables where they are, also if nothing else needs them any more.
        self._tables = tables_of(model.config, device)

    @torch.inference_mode()
    def write(self, tokens: Sequence[int]) -> None:
        """Write the next token of each row where `compute` reads it. Nothing waits for the GPU."""
        rows = self._shape.rows
        columns = [list(tokens), self._cache.lengths[:rows]]
        if self._shape.fills:
            columns.append(_filled(self._cache, rows))
        self._given.copy_(torch.tensor(columns), non_blocking=True)

    @torch.inference_mode()
    def compute(self) -> tuple[Tensor, Tensor]:
        """Return the hidden states (B, 1, d_model) and the fp32 logits (B, 1, vocab) of the tokens.

        Their keys and values are in the cache, whose `lengths` stay as they are.
        """
        tokens, positions, *segments = self._given[:, :, None]
        shape, extra = self._shape, self._cache.extra
        filled = segments[0] if segments else positions[:, :0]
        of_step = extra and extra.place_of_step(filled, shape.entries)
        # As if each row were as long as it may be. The real positions are in a tensor.
        cache_place = Place(0, (shape.entries - 1,) * shape.rows, 1, positions, of_step)
        hidden = self._model.hidden_at(tokens, self._cache, cache_place)
        return hidden, self._model.logits(hidden).float()


def _filled(cache: KVCache, rows: int) -> list[int]:
    """Return the number of the entries that the next token of each row brings, or −1."""
    return [-1] * rows if cache.extra is None else cache.extra.filled(cache.lengths[:rows])
