"""The n-grams of items, as hashes.

An item of 13 words or more has the runs of 13 words of its last 40. An item of 8 to 12 words has
one run, all of it. A run that 10 or more items of a set have is a template, which says nothing
about a single item: it is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pion.data.overlap.items import LEAST_WORDS, Item, counted_words
from pion.data.overlap.words import MOST_BYTES, words_of

NGRAM_WORDS = 13
# A run that so many items of a set have is a template.
TEMPLATE_ITEMS = 10
# Words of 1,000 bytes (no honest text has such) are cut, so that every item fits at once.
_LONGEST_WORD = 1000


@dataclass(frozen=True)
class NGrams:
    """The n-grams of some items. Equal n-grams of one item are one.

    Attributes:
        hashes: (G,) uint64, not in order.
        prefixes: (G,) uint64: the hashes of the first LEAST_WORDS words.
        items: (G,) int32: whose n-gram it is.
        in_answer: (G,) whether it reaches into the answer.
        lengths: the numbers of words that n-grams have.
    """

    hashes: np.ndarray
    prefixes: np.ndarray
    items: np.ndarray
    in_answer: np.ndarray
    lengths: frozenset[int]


def ngrams_of(items: Sequence[Item]) -> NGrams:
    """Return the n-grams of the items of one set, without templates."""
    parts, lengths = [], set[int]()
    for block in _blocks(items):
        parts.append(_ngrams(block))
        lengths |= {min(len(item_words), NGRAM_WORDS) for item_words in block.texts}
    if not parts:
        none = np.zeros(0, dtype=np.uint64)
        return NGrams(none, none, none.astype(np.int32), none.astype(bool), frozenset())
    hashes, prefixes, owners, in_answer = (np.concatenate(part) for part in zip(*parts))
    order = np.lexsort((~in_answer, owners, hashes))
    hashes, owners = hashes[order], owners[order]
    # Of an n-gram that an item has twice, one that reaches into the answer comes first.
    once = np.ones(len(hashes), dtype=bool)
    once[1:] = (hashes[1:] != hashes[:-1]) | (owners[1:] != owners[:-1])
    _, which, counts = np.unique(hashes[once], return_inverse=True, return_counts=True)
    places = np.flatnonzero(once)[counts[which] < TEMPLATE_ITEMS]
    chosen = order[places]
    return NGrams(
        hashes[places],
        prefixes[chosen],
        owners[places],
        in_answer[chosen],
        frozenset(lengths),
    )


@dataclass(frozen=True)
class _Block:
    """Items whose words are hashed together: their numbers, words, and words of the answer."""

    items: list[int]
    texts: list[list[bytes]]
    answers: list[int]


def _blocks(items: Sequence[Item]) -> Iterator[_Block]:
    """Yield the items that have enough words, as many at a time as `words_of` takes."""
    block, size = _Block([], [], []), 0
    for number, item in enumerate(items):
        item_words, answer = counted_words(item)
        if len(item_words) < LEAST_WORDS:
            continue
        item_words = [word[:_LONGEST_WORD] for word in item_words]
        length = sum(map(len, item_words)) + len(item_words)
        if size + length > MOST_BYTES:
            yield block
            block, size = _Block([], [], []), 0
        block.items.append(number)
        block.texts.append(item_words)
        block.answers.append(answer)
        size += length
    if block.items:
        yield block


def _ngrams(block: _Block) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return hashes, prefixes, items and in_answer of all n-grams, templates among them."""
    words = words_of(b" ".join(word for text in block.texts for word in text))
    sizes = np.array([len(text) for text in block.texts])
    lengths = np.minimum(sizes, NGRAM_WORDS)
    runs = sizes - lengths + 1
    owner = np.repeat(np.arange(len(sizes)), runs)
    inside = np.arange(len(owner)) - np.repeat(np.cumsum(runs) - runs, runs)
    places = (np.cumsum(sizes) - sizes)[owner] + inside
    hashes = np.zeros(len(owner), dtype=np.uint64)
    for length in np.unique(lengths).tolist():
        these = lengths[owner] == length
        hashes[these] = words.run_hashes(places[these], length)
    in_answer = inside + lengths[owner] > (sizes - np.array(block.answers))[owner]
    items = np.array(block.items, dtype=np.int32)[owner]
    return hashes, words.run_hashes(places, LEAST_WORDS), items, in_answer
