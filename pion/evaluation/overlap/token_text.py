"""From rows of token ids back to the bytes of their text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput

# About so many ids are turned into bytes at once.
_IDS_AT_ONCE = 2**15


@dataclass(frozen=True)
class TokenTexts:
    """The bytes of each id.

    Attributes:
        text: (bytes,) uint8: those of all ids, one after the other.
        starts: (vocab_size,) int64: where the bytes of each id begin.
        sizes: (vocab_size,) int64: how many they are.
    """

    text: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray


def token_texts(tokenizer: Tokenizer) -> TokenTexts:
    """Return the bytes of each id. Of an id without any, such as a special one: a newline.

    So the last word of a document and the first of the next stay apart.
    """
    texts = [tokenizer.bytes_of(token) or b"\n" for token in range(tokenizer.vocab_size)]
    sizes = np.array([len(text) for text in texts], dtype=np.int64)
    return TokenTexts(np.frombuffer(b"".join(texts), np.uint8), np.cumsum(sizes) - sizes, sizes)


def row_texts(rows: np.ndarray, texts: TokenTexts, where: str = "rows") -> Iterator[bytes]:
    """Yield the text of each of `rows` (R, T), whole numbers.

    Errors call the rows `where`.

    Raises:
        BadInput: an id is none of the tokenizer's.
    """
    count, length = rows.shape
    at_once = max(1, _IDS_AT_ONCE // max(1, length))
    for first in range(0, count, at_once):
        ids = np.asarray(rows[first : first + at_once])
        _check(ids, len(texts.sizes), f"{where}: rows from {first:,}")
        sizes = texts.sizes[ids.ravel()]
        ends = np.cumsum(sizes)
        # An id's bytes begin at `starts` in the table, and at `ends - sizes` in the result.
        shifts = texts.starts[ids.ravel()] - (ends - sizes)
        places = np.repeat(shifts, sizes) + np.arange(sizes.sum())
        joined = texts.text[places].tobytes()
        borders = [0, *(ends[length - 1 :: length].tolist() if length else [0] * len(ids))]
        for start, end in pairwise(borders):
            yield joined[start:end]


def _check(ids: np.ndarray, vocab_size: int, where: str) -> None:
    """Raise BadInput unless all ids are the tokenizer's."""
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise BadInput(
            f"{where} have ids from {ids.min()} to {ids.max()}, but the tokenizer's end at "
            f"{vocab_size - 1:,}. Is the tokenizer from the same data?"
        )
