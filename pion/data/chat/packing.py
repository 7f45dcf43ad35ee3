"""Pack conversations into rows of ``seq_len`` ids, each conversation into one row."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pion.data.chat.conversation import Tokenized
from pion.data.row_flags import LEARNED, PADDING, STARTS

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
    kept = [c for c in conversations if c.learned[1:seq_len].any()]
    bins = best_fit_decreasing([min(len(c.ids), seq_len) for c in kept], seq_len)
    ids = np.full((len(bins), seq_len), pad, dtype=np.int32)
    flags = np.full((len(bins), seq_len), PADDING, dtype=np.uint8)
    for row, members in enumerate(bins):
        start = 0
        for member in members:
            piece = kept[member].ids[:seq_len]
            end = start + len(piece)
            ids[row, start:end] = piece
            flags[row, start:end] = kept[member].learned[:seq_len] * np.uint8(LEARNED)
            flags[row, start] |= STARTS
            start = end
    return Packed(
        ids,
        flags,
        conversations=len(kept),
        cut=sum(len(c.ids) > seq_len for c in kept),
        dropped=len(conversations) - len(kept),
    )


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
