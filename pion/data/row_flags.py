"""The flags of a row's tokens: what is learned, where sequences start, and which are preferred.

A row of flags is uint8 ``(seq_len,)`` next to the row's ids. Sequences (conversations, or the sides
of preferences) follow each other from the first token on, and padding fills the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pion.errors import BadInput

# Learned as a target; starts a sequence; only fills the row.
LEARNED = 1
STARTS = 2
PADDING = 4
# On the STARTS token of a chosen or desired sequence. In rows of pairs, every second sequence has
# it: a pair is two sequences next to each other, first the chosen one.
PREFERRED = 8

# The file next to the shards of preferences: how many sequences come before each row, and in all,
# int32 ``(rows + 1,)``.
SEQUENCES = "sequences.npy"


@dataclass(frozen=True)
class Sequences:
    """The sequences of rows, in the order of the rows: arrays ``(sequences,)``.

    Attributes:
        rows: int64, the row of each sequence.
        tokens: int64, how many tokens it has.
        targets: int64, how many of its tokens are learned. Its first token never is.
        preferred: bool.
    """

    rows: np.ndarray
    tokens: np.ndarray
    targets: np.ndarray
    preferred: np.ndarray


def sides_of(flags: np.ndarray) -> np.ndarray:
    """Return the side of each sequence, int8 ``(rows, S)``, for flags uint8 ``(rows, seq_len)``.

    ``S`` is the largest number of sequences in a row. A side is 1 (preferred) or -1 (not), and 0
    where a row has fewer sequences.
    """
    starts = (flags & STARTS) != 0
    counts = starts.sum(axis=1)
    sides = np.zeros((len(flags), int(counts.max(initial=0))), dtype=np.int8)
    # The starts of a row come first in its line of `sides`, in their order.
    is_sequence = np.arange(sides.shape[1]) < counts[:, None]
    sides[is_sequence] = np.where(flags[starts] & PREFERRED, 1, -1)
    return sides


def sequences_of(flags: np.ndarray) -> Sequences:
    """Return the sequences of rows with these flags, uint8 ``(rows, seq_len)``."""
    flat = flags.reshape(-1)
    starts = np.flatnonzero(flat & STARTS)
    return Sequences(
        rows=starts // flags.shape[1],
        tokens=_sums((flat & PADDING) == 0, starts),
        targets=_sums((flat & (LEARNED | STARTS)) == LEARNED, starts),
        preferred=(flat[starts] & PREFERRED) != 0,
    )


def require_pairs(flags: np.ndarray, where: str) -> None:
    """Raise BadInput, naming `where`, unless a row's sequences are pairs, chosen first.

    `flags` is uint8 ``(seq_len,)``.
    """
    preferred = (flags[(flags & STARTS) != 0] & PREFERRED) != 0
    if len(preferred) % 2 or not preferred[::2].all() or preferred[1::2].any():
        raise BadInput(
            f"{where}: its sequences are not pairs of a chosen and a rejected one. Prepare the "
            "data again"
        )


def _sums(marked: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return how many tokens are marked from each start to the next one."""
    return np.add.reduceat(marked, starts, dtype=np.int64)
