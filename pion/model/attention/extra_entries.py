"""What a cache must know of a part with entries behind the text of each row, such as slots."""

from __future__ import annotations

import contextlib
import math
import mmap
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class ExtraEntries(Protocol):
    """How a cache keeps such entries. What a pass has of them is known to the part alone."""

    def layer(self, max_tokens: int, rows: int | None) -> Any:
        """Return what a layer keeps of texts of at most so many tokens.

        It has the methods of SlotCache (slot_cache.py), which LayerCache calls with its own.
        """

    def place(self, starts: Sequence[int], count: int, device: torch.device) -> Any:
        """Return what a pass has over `count` tokens after `starts` tokens of each row."""

    def filled(self, lengths: Sequence[int]) -> list[int]:
        """Return the number of the entries that the next token of each row brings, or −1."""

    def place_of_step(self, filled: Tensor, tokens: int) -> Any:
        """Return what a step has whose rows, of at most so many tokens, bring these entries."""


class RowBuffers(ABC):
    """What a layer keeps of each row: keys and values, of at most `most` entries.

    `both` (2, rows, n_kv_heads, entries, head_dim) is there from the first write on.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.both: Tensor | None = None

    def grow(self, like: Tensor, rows: int, entries: int) -> Tensor:
        """Make the buffers as large, for tensors like this one (B, n_kv_heads, T, head_dim)."""
        with torch.inference_mode(False):  # rows may be swapped outside inference mode
            larger = zeros(like, (2, rows, like.shape[1], entries, like.shape[3]))
        if self.both is not None:
            larger[:, :, :, : self.both.shape[3]] = self.both
        self.both = larger
        return larger

    @abstractmethod
    def entries_of(self, tokens: int) -> int:
        """Return how many of the first entries a text of so many tokens can have."""

    def swap(self, one: int, other: int, tokens: int) -> None:
        """Let two rows of at most so many tokens change places."""
        if self.both is not None:
            here = slice(self.entries_of(tokens))
            first = self.both[:, one, :, here].clone()
            self.both[:, one, :, here] = self.both[:, other, :, here]
            self.both[:, other, :, here] = first

    def copy(self, source: int, row: int, tokens: int) -> None:
        """Give a row the first tokens of another."""
        if self.both is not None:
            here = slice(self.entries_of(tokens))
            self.both[:, row, :, here] = self.both[:, source, :, here]

    def clear(self, row: int) -> None:
        """Overwrite a row with zeros."""
        if self.both is not None:
            self.both[:, row] = 0

    def bytes_per_row(self) -> int:
        """Return the bytes of a row at its largest; 0 before the first write."""
        return 0 if self.both is None else self.both[:, 0, :, 0].nbytes * self.most


def zeros(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return zeros on the device of `like`: a mask does not hide NaN, because 0 · NaN is NaN.

    On a CPU, they take memory only where they are written. A row has room for a whole context, and
    most texts are shorter.
    """
    if like.device.type != "cpu":
        return like.new_zeros(shape)
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    pages = mmap.mmap(-1, math.prod(shape) * like.itemsize, flags=private)
    # With larger pages, one token could take 2 MB of each head of each layer.
    with contextlib.suppress(OSError):  # this kernel has none
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=like.dtype).view(shape)
