"""The part of a row that an item shares with the row, to show to a reader."""

from __future__ import annotations

import re

from pion.evaluation.overlap.items import LEAST_WORDS, Item, counted_words
from pion.evaluation.overlap.ngrams import NGRAM_WORDS
from pion.evaluation.overlap.words import word_bytes

# The most bytes that are shown of a row.
MOST_SHOWN = 600
_RUN = re.compile(rb"[^\0]+")


def shared_text(item: Item, row: bytes) -> str:
    """Return a row's text from its first n-gram of the item to the last, "" if it has none.

    At most MOST_SHOWN bytes are shown; then a "…" ends the text.
    """
    words, _ = counted_words(item)
    length = min(len(words), NGRAM_WORDS)
    if length < LEAST_WORDS:
        return ""
    wanted = {tuple(words[n : n + length]) for n in range(len(words) - length + 1)}
    spans = [(found.group(), found.span()) for found in _RUN.finditer(word_bytes(row).tobytes())]
    own = [word for word, _ in spans]
    places = [n for n in range(len(own)) if tuple(own[n : n + length]) in wanted]
    if not places:
        return ""
    start, end = spans[places[0]][1][0], spans[places[-1] + length - 1][1][1]
    shown = row[start : min(end, start + MOST_SHOWN)].decode(errors="replace")
    return shown if end - start <= MOST_SHOWN else f"{shown}…"
