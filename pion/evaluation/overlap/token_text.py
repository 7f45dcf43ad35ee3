"""From rows of token ids back to the bytes of their text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput


def token_texts(tokenizer: Tokenizer) -> list[bytes]:
    """Return the bytes of each id. Of an id without any, such as a special one: a newline.

    So the last word of a document and the first of the next stay apart.
    """
    return [tokenizer.bytes_of(token) or b"\n" for token in range(tokenizer.vocab_size)]


def row_texts(rows: np.ndarray, texts: Sequence[bytes], where: str = "rows") -> Iterator[bytes]:
    """Yield the text of each of `rows` (R, T), whole numbers.

    `texts` is what `token_texts` returns. Errors call the rows `where`.

    Raises:
        BadInput: an id is none of the tokenizer's.
    """
    for number, row in enumerate(rows):
        if row.size and not 0 <= int(row.min()) <= int(row.max()) < len(texts):
            raise BadInput(
                f"{where}: row {number:,} has ids from {row.min()} to {row.max()}, but the "
                f"tokenizer's end at {len(texts) - 1:,}. Is the tokenizer from the same data?"
            )
        yield b"".join(map(texts.__getitem__, row.tolist()))
