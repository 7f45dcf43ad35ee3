"""What a search has found so far: it can be kept after each shard, and continued.

The result does not depend on where the search was interrupted, nor on the order of the rows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from pion.data.overlap.index import Index
from pion.errors import BadInput
from pion.untrusted import parse_object

RULE = "overlap-1"
# A row overlaps with an item if it holds at least this share of the item's n-grams.
THRESHOLD = 0.5
# No row is numbered so high.
_MOST_ROWS = 2**63


@dataclass
class Found:
    """What the rows that were searched hold.

    Attributes:
        digest: of all that is looked for (`Index.digest`).
        rows: how many rows were searched.
        text_bytes: how many bytes of text these have.
        held: (items,) int32: the most n-grams of each item that one row holds.
        row: (items,) int64: the first row that holds so many; -1: none holds any.
        with_answer: (items,) whether a row at the threshold holds an n-gram that reaches into the
            answer.
    """

    digest: str
    rows: int
    text_bytes: int
    held: np.ndarray
    row: np.ndarray
    with_answer: np.ndarray

    def overlapped(self, index: Index) -> np.ndarray:
        """Return whether one row holds enough n-grams of each item, (items,)."""
        enough: np.ndarray = self.held >= least_held(index)
        return enough & (index.sizes > 0)

    def to_bytes(self) -> bytes:
        """Return the JSON that `read_found` reads. Equal results give equal bytes."""
        hits = np.flatnonzero(self.held)
        parts = (hits, self.held[hits], self.row[hits], self.with_answer[hits].astype(int))
        record = {
            "rule": RULE,
            "digest": self.digest,
            "threshold": THRESHOLD,
            "rows": self.rows,
            "bytes": self.text_bytes,
            "items": [list(item) for item in zip(*(part.tolist() for part in parts))],
        }
        return json.dumps(record).encode() + b"\n"


def nothing_found(index: Index) -> Found:
    """Return the state before the first row."""
    items = len(index.sizes)
    return Found(
        digest=index.digest,
        rows=0,
        text_bytes=0,
        held=np.zeros(items, dtype=np.int32),
        row=np.full(items, -1, dtype=np.int64),
        with_answer=np.zeros(items, dtype=bool),
    )


def read_found(data: bytes, index: Index, where: str) -> Found:
    """Return the state in what `Found.to_bytes` returned. Errors call it `where`.

    Raises:
        BadInput: it is no such state, or is of other items, another threshold or another rule.
    """
    found = nothing_found(index)
    record = parse_object(data, where)
    expected = {"rule": RULE, "digest": index.digest, "threshold": THRESHOLD}
    for key, value in expected.items():
        if record.get(key) != value:
            raise BadInput(
                f"{where}: key {key} is {record.get(key)!r:.80}, but this search has "
                f"{value!r:.80}. Hits of another search can't be continued: delete this file, and "
                "search again"
            )
    try:
        found.rows, found.text_bytes = _count(record["rows"]), _count(record["bytes"])
        for item, held, row, answered in record["items"]:
            if not 0 < _count(held) <= index.sizes[_count(item)] or answered not in (0, 1):
                raise ValueError(f"item {item!r:.20} has {held!r:.20} n-grams")
            found.held[item], found.row[item] = held, _count(row)
            found.with_answer[item] = bool(answered)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise BadInput(
            f"{where}: these hits are damaged ({error}). Delete this file, and search again"
        ) from None
    return found


def settle(found: Found, index: Index, row: int, grams: np.ndarray) -> np.ndarray:
    """Note what one row holds: `grams` are the numbers of n-grams, each once.

    Return the numbers of the items with which the row overlaps.
    """
    begins = index.offsets[grams].astype(np.int64)
    counts = index.offsets[grams + 1] - begins
    places = np.repeat(begins - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
    items, which, held = np.unique(index.items[places], return_inverse=True, return_counts=True)
    best, first = found.held[items], found.row[items]
    better = (held > best) | ((held == best) & (row < first))
    found.held[items[better]], found.row[items[better]] = held[better], row
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
    if type(value) is not int or not 0 <= value < _MOST_ROWS:
        raise ValueError(f"{value!r:.40} is not a whole number")
    return value
