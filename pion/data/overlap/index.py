"""Find the n-grams of all sets in words: exactly, by sorted hashes behind a bitmap.

Two different runs of words have the same 64-bit hash with a chance of 5e-20. So in 10¹⁰ words and
3.5 million n-grams, 0.002 wrong hits are expected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from pion.data.overlap.items import LEAST_WORDS, ItemSet
from pion.data.overlap.ngrams import ngrams_of
from pion.data.overlap.words import Words

# The bitmap has 2**27 bits: 16 MB. Four million n-grams set up to 6 % of them.
BITMAP_BITS = 27
_SHIFT = np.uint64(64 - BITMAP_BITS)


@dataclass(frozen=True)
class Index:
    """The n-grams of all sets. Items are numbered through: a set's items, then its control.

    Attributes:
        sets: the sets.
        firsts: the number of the first item of each set, of its control, of the next set, …, and
            at last the number of all items.
        hashes: (G,) uint64, sorted, each once.
        offsets: (G + 1,) int32: the items of n-gram g are `items[offsets[g] : offsets[g + 1]]`.
        items: (P,) int32 item numbers.
        in_answer: (P,) whether the n-gram reaches into the item's answer.
        sizes: (items,) int32: how many n-grams each item has; 0: it can't be judged.
        lengths: the numbers of words that n-grams have.
        bitmap: bits of the hashes, and of the hashes of the first LEAST_WORDS words.
    """

    sets: tuple[ItemSet, ...]
    firsts: tuple[int, ...]
    hashes: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    in_answer: np.ndarray
    sizes: np.ndarray
    lengths: tuple[int, ...]
    bitmap: np.ndarray

    def find(self, words: Words, row_starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the n-grams that the words hold, and in which row each begins.

        `row_starts` is where each row begins, in bytes, in order. No n-gram spans two rows. An
        n-gram that is there twice is returned twice.
        """
        count = len(words.starts)
        places = np.zeros(0, dtype=np.int64)
        if count >= LEAST_WORDS:
            places = np.flatnonzero(self._may_have(words.run_hashes(slice(None), LEAST_WORDS)))
        rows, grams = [places[:0]], [places[:0]]
        for length in self.lengths:
            first = places[places + length <= count]
            hashes = words.run_hashes(first, length)
            likely = self._may_have(hashes)
            first, hashes = first[likely], hashes[likely]
            positions = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
            first_rows = _row_of(words.starts[first], row_starts)
            end = _row_of(words.starts[first + length - 1], row_starts)
            held = (self.hashes[positions] == hashes) & (first_rows == end)
            rows.append(first_rows[held])
            grams.append(positions[held])
        return np.concatenate(rows), np.concatenate(grams)

    def _may_have(self, hashes: np.ndarray) -> np.ndarray:
        """Return whether each hash may be one of the index. False is certain."""
        places = hashes >> _SHIFT
        bits = (places & np.uint64(7)).astype(np.uint8)
        held: np.ndarray = (self.bitmap[places >> np.uint64(3)] >> bits) & np.uint8(1)
        return held.astype(bool)


def build_index(sets: Sequence[ItemSet]) -> Index:
    """Return the index of the items and controls of all sets, which may be none."""
    groups = [group for s in sets for group in (s.items, s.control)]
    firsts = list(accumulate(map(len, groups), initial=0))
    group_ngrams = [ngrams_of(group) for group in groups] or [ngrams_of([])]
    hashes = np.concatenate([ngrams.hashes for ngrams in group_ngrams])
    owners = np.concatenate([ngrams.items + np.int32(n) for ngrams, n in zip(group_ngrams, firsts)])
    in_answer = np.concatenate([ngrams.in_answer for ngrams in group_ngrams])
    bitmap = np.zeros(2 ** (BITMAP_BITS - 3), dtype=np.uint8)
    _mark(bitmap, hashes)
    _mark(bitmap, np.concatenate([ngrams.prefixes for ngrams in group_ngrams]))
    order = np.argsort(hashes)
    hashes, offsets = _once(hashes[order])
    return Index(
        sets=tuple(sets),
        firsts=tuple(firsts),
        hashes=hashes,
        offsets=offsets,
        items=owners[order],
        in_answer=in_answer[order],
        sizes=np.bincount(owners, minlength=firsts[-1]).astype(np.int32),
        lengths=tuple(sorted(set[int]().union(*(ngrams.lengths for ngrams in group_ngrams)))),
        bitmap=bitmap,
    )


def _once(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each of the sorted hashes once, and where its first is; at last how many they were."""
    begins = np.ones(len(hashes) + 1, dtype=bool)
    np.not_equal(hashes[1:], hashes[:-1], out=begins[1:-1])
    offsets = np.flatnonzero(begins).astype(np.int32)
    return hashes[offsets[:-1]], offsets


def _mark(bitmap: np.ndarray, hashes: np.ndarray) -> None:
    """Set the bit of each hash."""
    places = hashes >> _SHIFT
    for bit in range(8):  # of several hashes in one byte, each sets the same bit
        bitmap[places[places & np.uint64(7) == bit] >> np.uint64(3)] |= np.uint8(1 << bit)


def _row_of(places: np.ndarray, row_starts: np.ndarray) -> np.ndarray:
    """Return the number of the row of each place in bytes."""
    return np.searchsorted(row_starts, places, side="right") - 1
