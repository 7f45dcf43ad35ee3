"""What a cache must know of a part with entries behind the text of each row, such as slots."""

from __future__ import annotations

import contextlib
import math
import mmap
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
