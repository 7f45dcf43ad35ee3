"""Texts as rows for measuring a model: each text has separate rows, and none is left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pion.data.shards import IGNORED
from pion.data.stream import Batch
from pion.data.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class OwnRows:
    """Rows of texts, int64 (R, T). A row has one text, or a part of one, and then padding.

    Attributes:
        tokens: the inputs.
        targets: the next tokens; -100 for padding.
        texts: the number of each row's text, (R,).
    """

    tokens: np.ndarray
    targets: np.ndarray
    texts: np.ndarray

    @property
    def total_rows(self) -> int:
        return len(self.tokens)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the rows with these numbers, in this order."""
        rows = list(indices)
        tokens, targets = torch.from_numpy(self.tokens[rows]), torch.from_numpy(self.targets[rows])
        return Batch(tokens, targets, None, None)

    def document_numbers(self, indices: Sequence[int], end_of_text: int) -> np.ndarray:
        """Return the number of the text that each target of these rows belongs to, (R, T)."""
        del end_of_text  # as in `RowStream`; here a row has a single text
        return np.broadcast_to(self.texts[list(indices), None], self.targets[list(indices)].shape)


def own_rows(
    tokenizer: Tokenizer, texts: Iterable[str], seq_len: int, most: int | None = None
) -> OwnRows:
    """Return the rows of `texts`: the first `most` of them, or all.

    A text is cut into rows of at most `seq_len` tokens. Rows don't see each other. As in training,
    an end-of-text token (or the tokenizer's first token) precedes a text, so each of its tokens is
    predicted once. No further text is read once there are enough rows.
    """
    cut: list[tuple[int, list[int], list[int]]] = []  # the text's number, inputs, next tokens
    for number, text in enumerate(texts):
        ids = [tokenizer.before_document, *tokenizer.encode(text)]
        for first in range(0, len(ids) - 1, seq_len):
            inputs = ids[first : min(first + seq_len, len(ids) - 1)]
            cut.append((number, inputs, ids[first + 1 : first + 1 + len(inputs)]))
        if most is not None and len(cut) >= most:
            break
    cut = cut[:most]
    longest = max((len(inputs) for _, inputs, _ in cut), default=0)
    tokens = np.full((len(cut), longest), tokenizer.pad, np.int64)
    targets = np.full((len(cut), longest), IGNORED, np.int64)
    for row, (_, inputs, nexts) in enumerate(cut):
        tokens[row, : len(inputs)], targets[row, : len(inputs)] = inputs, nexts
    return OwnRows(tokens, targets, np.array([number for number, *_ in cut], np.int64))
