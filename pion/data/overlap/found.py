"""What a search has found so far: it can be kept, and continued.

The result does not depend on where the search was interrupted, nor on the order of the rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pion.data.overlap.index import Index

# A row overlaps with an item if it holds at least this share of the item's n-grams.
THRESHOLD = 0.5


@dataclass
class Found:
    """What the rows that were searched hold.

    Attributes:
        rows: how many rows were searched.
        held: (items,) int32: the most n-grams of each item that one row holds.
        with_answer: (items,) whether a row at the threshold holds an n-gram that reaches into the
            answer.
    """

    rows: int
    held: np.ndarray
    with_answer: np.ndarray

    def overlapped(self, index: Index) -> np.ndarray:
        """Return whether one row holds enough n-grams of each item, (items,)."""
        enough: np.ndarray = self.held >= least_held(index)
        return enough & (index.sizes > 0)

    def record(self) -> dict[str, Any]:
        """Return the JSON that `read_found` reads. Equal results give equal records."""
        hits = np.flatnonzero(self.held)
        parts = (hits, self.held[hits], self.with_answer[hits].astype(int))
        items = [list(item) for item in zip(*(part.tolist() for part in parts))]
        return {"rows": self.rows, "items": items}


def nothing_found(index: Index) -> Found:
    """Return the state before the first row."""
    items = len(index.sizes)
    return Found(0, np.zeros(items, dtype=np.int32), np.zeros(items, dtype=bool))


def read_found(record: Any, index: Index) -> Found:
    """Return the state of which `Found.record` made this record, for the same index.

    Raises:
        KeyError, TypeError, ValueError, IndexError: it is no such record.
    """
    found = nothing_found(index)
    found.rows = _count(record["rows"])
    for item, held, answered in record["items"]:
        if not 0 < _count(held) <= index.sizes[_count(item)] or answered not in (0, 1):
            raise ValueError(f"item {item!r:.20} has {held!r:.20} n-grams")
        found.held[item], found.with_answer[item] = held, bool(answered)
    return found


def settle(found: Found, index: Index, grams: np.ndarray) -> np.ndarray:
    """Note what one row holds: `grams` are the numbers of n-grams, each once.

    Return the numbers of the items with which the row overlaps.
    """
    begins = index.offsets[grams].astype(np.int64)
    counts = index.offsets[grams + 1] - begins
    places = np.repeat(begins - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    items, which, held = np.unique(index.items[places], return_inverse=True, return_counts=True)
    found.held[items] = np.maximum(found.held[items], held)
    enough = held >= least_held(index, items)
    answered = np.bincount(which, index.in_answer[places], len(items)) > 0
    found.with_answer[items[enough & answered]] = True
    overlapping: np.ndarray = items[enough]
    return overlapping


def least_held(index: Index, items: np.ndarray | slice = slice(None)) -> np.ndarray:
    """Return how many n-grams of each item one row must hold; at least 1."""
    # A share such as 0.7 of 10 must be 7, although 0.7 · 10 is a little more in floating point.
    least: np.ndarray = np.ceil(THRESHOLD * index.sizes[items] - 1e-9)
    return np.maximum(least, 1).astype(np.int64)


def _count(value: object) -> int:
    """Return a whole number from 0. Raises ValueError for anything else."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{value!r:.40} is not a whole number")
    return value
