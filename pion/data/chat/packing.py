"""Pack conversations and preferences into rows of ``seq_len`` ids, each into one row."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pion.data.chat.conversation import Tokenized
from pion.data.row_flags import LEARNED, PADDING, PREFERRED, STARTS

# Lengths of rows that are advised are a multiple of this.
BUCKET = 64


@dataclass(frozen=True)
class Packed:
    """Rows packed from conversations.

    Attributes:
        ids: int32 ``(rows, seq_len)``.
        flags: uint8 ``(rows, seq_len)``, see ``pion.data.shards``.
        conversations: number of conversations in the rows.
        cut: number of these conversations that were longer than a row and lost their end.
        dropped: number of conversations left out because none of their learned tokens fit.
    """

    ids: np.ndarray
    flags: np.ndarray
    conversations: int
    cut: int
    dropped: int


def pack(conversations: Sequence[Tokenized], seq_len: int, pad: int) -> Packed:
    """Pack conversations by best-fit decreasing.

    Conversations that are longer than a row lose their end. Unused tails are filled with ``pad``.
    The result is a pure function of the arguments.
    """
    # The first token of a row is never a target, so a learned token there teaches nothing.
    learnable = [c for c in conversations if c.learned[1:seq_len].any()]
    cut = [Tokenized(c.ids[:seq_len], c.learned[:seq_len]) for c in learnable]
    ids, flags = pack_items([[Sided(tokenized, False)] for tokenized in cut], seq_len, pad)
    return Packed(
        ids,
        flags,
        conversations=len(learnable),
        cut=sum(len(c.ids) > seq_len for c in learnable),
        dropped=len(conversations) - len(learnable),
    )


class Sided(NamedTuple):
    """A sequence and its side: whether it is the chosen (or a desired) one."""

    sequence: Tokenized
    preferred: bool


def item_length(item: Sequence[Sided]) -> int:
    """Return how many tokens the sequences of an item have."""
    return sum(len(sided.sequence.ids) for sided in item)


def pack_items(
    items: Sequence[Sequence[Sided]], seq_len: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pack items by best-fit decreasing. The sequences of an item stay next to each other.

    An item is a conversation, a pair, or a sequence with a label. Documents of a row never attend
    to each other, so the loss of a pair needs one row and no other mask. Unused tails are filled
    with ``pad``. The result is a pure function of the arguments.

    Returns:
        The ids, int32 ``(rows, seq_len)``, and their flags (`pion.data.row_flags`), uint8 of the
        same shape.

    Raises:
        ValueError: an item is longer than a row. Nothing of an item is ever cut.
    """
    lengths = [item_length(item) for item in items]
    if max(lengths, default=0) > seq_len:
        raise ValueError(f"an item of {max(lengths)} tokens is longer than a row of {seq_len}")
    bins = best_fit_decreasing(lengths, seq_len)
    ids = np.full((len(bins), seq_len), pad, dtype=np.int32)
    flags = np.full((len(bins), seq_len), PADDING, dtype=np.uint8)
    for row, members in enumerate(bins):
        start = 0
        for sequence, preferred in (sided for member in members for sided in items[member]):
            end = start + len(sequence.ids)
            ids[row, start:end] = sequence.ids
            flags[row, start:end] = sequence.learned * np.uint8(LEARNED)
            flags[row, start] |= STARTS | (PREFERRED if preferred else 0)
            start = end
    return ids, flags


def row_that_holds(share: float, lengths: np.ndarray) -> int:
    """Return the tokens of a row, a multiple of BUCKET, that this share of the lengths fits in.

    It is 0 without lengths.
    """
    if not len(lengths):
        return 0
    needed = int(np.sort(lengths)[int(np.ceil(share * len(lengths))) - 1])
    return -(-needed // BUCKET) * BUCKET


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assign items to bins, longest first, each to the fullest bin that still has room.

    This is best-fit decreasing (Johnson 1973, "Near-optimal bin packing algorithms"). Items of
    equal length keep their order. Of bins with equal room, the one that was filled last is next.

    Returns:
        For each bin the indices of its items.
    """
    bins: list[list[int]] = []
    # Of each bin with room: its space, when it got its last item, negative so that the latest
    # comes first, and its number. Sorted.
    free: list[tuple[int, int, int]] = []
    for turn, item in enumerate(sorted(range(len(lengths)), key=lambda i: -lengths[i])):
        length = lengths[item]
        at = bisect_left(free, (length, -len(lengths), 0))
        if at == len(free):
            bins.append([])
            free.append((capacity, -turn, len(bins) - 1))
        space, _, chosen = free.pop(at)
        bins[chosen].append(item)
        if space > length:
            insort(free, (space - length, -turn, chosen))
    return bins
