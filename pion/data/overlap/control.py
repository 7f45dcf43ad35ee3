"""Excerpts of held-out text: how much overlap there is without any leak.

Held-out rows were not trained on. If their excerpts are in the training rows, this is what the
duplicates in the data yield, and as much is expected of an evaluation set that nobody leaked.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pion.data.overlap.items import LEAST_WORDS, Item, counted_words
from pion.data.overlap.words import split_words

EXCERPTS = 1000


def draw_control(
    items: Sequence[Item], held_out: Sequence[bytes], count: int = EXCERPTS, seed: int = 0
) -> list[Item]:
    """Return `count` excerpts of held-out rows, as long as randomly drawn items.

    `held_out` has the text of each row in UTF-8. The same arguments give the same excerpts. Without
    items of enough words, or if no row is as long as a drawn item, there are fewer, down to none.
    """
    lengths = [len(counted_words(item)[0]) for item in items]
    lengths = [length for length in lengths if length >= LEAST_WORDS]
    if not lengths:
        return []
    sizes = np.array([len(split_words(text)) for text in held_out])
    chance = np.random.default_rng(seed)
    excerpts = []
    for _ in range(count):
        length = lengths[chance.integers(len(lengths))]
        rows = np.flatnonzero(sizes >= length)
        if not len(rows):
            continue
        row = int(rows[chance.integers(len(rows))])
        first = int(chance.integers(sizes[row] - length + 1))
        words = split_words(held_out[row])[first : first + length]
        text = b" ".join(words).decode(errors="replace")
        excerpts.append(Item(question=text, answer="", passage=f"row {row}"))
    return excerpts
