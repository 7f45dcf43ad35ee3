"""Search rows of text for the n-grams of an index, with bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from pion.data.overlap.found import Found, settle
from pion.data.overlap.index import Index
from pion.data.overlap.ngrams import NGRAM_WORDS
from pion.data.overlap.words import MOST_BYTES, together, words_of

Rows = list[tuple[int, bytes]]


def search(
    index: Index,
    rows: Iterable[tuple[int, bytes]],
    found: Found,
    on_overlap: Callable[[int, np.ndarray], None] = lambda row, items: None,
) -> None:
    """Add to `found` what the rows hold: pairs of a row's number (from 0) and its text in UTF-8.

    `on_overlap` is called with each row that overlaps with items, and the numbers of these items.

    A text may begin or end inside a character, and have any length.
    """
    for some in together(rows, lambda row: row[1]):
        for row, grams in _held(index, some):
            items = settle(found, index, grams)
            if len(items):
                on_overlap(row, items)
        found.rows += len(some)


def _held(index: Index, some: Rows) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the number of each row that holds n-grams, and the n-grams, each once."""
    if len(some) == 1:
        row, text = some[0]
        row_starts = np.zeros(1, dtype=np.int64)
        grams = [index.find(words_of(piece), row_starts)[1] for piece in pieces(text)]
        held = np.unique(np.concatenate(grams))
        if len(held):
            yield row, held
        return
    starts = np.cumsum([0, *(len(text) + 1 for _, text in some[:-1])])
    owners, grams_of_rows = index.find(words_of(b"\n".join(text for _, text in some)), starts)
    order = np.argsort(owners, kind="stable")
    owners, grams_of_rows = owners[order], grams_of_rows[order]
    for group in np.split(np.arange(len(owners)), np.flatnonzero(np.diff(owners)) + 1):
        if len(group):
            yield some[owners[group[0]]][0], np.unique(grams_of_rows[group])


def pieces(text: bytes) -> Iterator[bytes]:
    """Yield parts of a text that `words_of` takes, so that every n-gram is whole in one of them.

    Each part begins with 13 words of the part before it, of which the last may have been cut there.
    Only in a text whose words have 20 KB are n-grams lost.
    """
    begin = 0
    while len(text) - begin > MOST_BYTES:
        part = text[begin : begin + MOST_BYTES]
        starts = words_of(part).starts
        if len(starts) > NGRAM_WORDS:
            yield part[: starts[-1]]
            begin += int(starts[-NGRAM_WORDS])
        else:
            yield part
            begin += MOST_BYTES
    yield text[begin:]
