"""Pack preferences into rows: a pair is two sequences next to each other, the chosen one first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pion.data.chat.conversation import Tokenized
from pion.data.chat.packing import best_fit_decreasing
from pion.data.row_flags import LEARNED, PADDING, PREFERRED, STARTS


class Sided(NamedTuple):
    """A sequence and its side: whether it is the chosen (or a desired) one."""

    sequence: Tokenized
    preferred: bool


def pack_preferences(
    items: Sequence[Sequence[Sided]], seq_len: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pack items by best-fit decreasing. The sequences of an item stay next to each other.

    An item is a pair, or one sequence with a label. Documents of a row never attend to each other,
    so the loss of a pair needs one row and no other mask. Unused tails are filled with `pad`. The
    result is a pure function of the arguments.

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


def item_length(item: Sequence[Sided]) -> int:
    """Return how many tokens the sequences of an item have."""
    return sum(len(sided.sequence.ids) for sided in item)
