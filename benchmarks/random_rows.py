"""Rows of random ids, for steps whose data does not matter."""

from collections.abc import Iterable

import torch

from pion.data.stream import Batch


class RandomRows:
    """Endless rows of random ids, each a single document."""

    def __init__(self, vocab_size: int, seq_len: int) -> None:
        self._vocab_size, self._seq_len = vocab_size, seq_len

    def batch(self, indices: Iterable[int]) -> Batch:
        """Return a row for each index; another call returns other rows."""
        tokens = torch.randint(0, self._vocab_size, (len(list(indices)), self._seq_len))
        return Batch(tokens, tokens.roll(-1, dims=1), None, None)
