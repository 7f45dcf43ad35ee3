"""Pack conversations into rows of ``seq_len`` ids, each conversation into one row."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pion.data.chat.conversation import Tokenized
from pion.data.shards import LEARNED, PADDING, STARTS


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


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assign items to bins, longest first, each to the fullest bin that still has room.

    This is best-fit decreasing (Johnson 1973, "Near-optimal bin packing algorithms"). It takes
    O(n log n + n · distinct free spaces) steps. Items of equal length keep their order.

    Returns:
        For each bin the indices of its items.
    """
    bins: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # free space -> bins that have it
    spaces: list[int] = []  # the keys of by_space, sorted
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[item]
        at = bisect_left(spaces, length)
        if at < len(spaces):
            space = spaces[at]
            chosen = by_space[space].pop()
            if not by_space[space]:
                del by_space[space], spaces[at]
        else:
            space, chosen = capacity, len(bins)
            bins.append([])
        bins[chosen].append(item)
        if space > length:
            if space - length not in by_space:
                by_space[space - length] = []
                insort(spaces, space - length)
            by_space[space - length].append(chosen)
    return bins
