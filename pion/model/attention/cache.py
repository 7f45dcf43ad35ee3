"""Cache the keys and values of earlier tokens, for generation: of one text, or of several."""

from __future__ import annotations

import torch
from torch import Tensor

from pion.config.model_config import ModelConfig

# A cache for more tokens than this starts with room for this many, and doubles when it is full.
SMALLEST_ROOM = 4096


class LayerCache:
    """One layer's keys and values, each in a buffer (B, n_kv_heads, room, head_dim).

    Writing allocates the buffers, with the dtype and device of the written tensors and with room
    for at most `max_tokens`. No gradient flows through them.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.length = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, n_kv_heads, T, head_dim); return all of them so far.

        Raises ValueError if there are more tokens than the cache has room for.
        """
        batch, heads, tokens, head_dim = keys.shape
        end = self.length + tokens
        if end > self.max_tokens:
            raise ValueError(f"{end} tokens don't fit a cache of {self.max_tokens}")
        with torch.no_grad():
            if self.keys is None or self.values is None or end > self.keys.shape[2]:
                room = min(self.max_tokens, max(SMALLEST_ROOM, 2 * end))
                shape = (batch, heads, room, head_dim)
                self.keys = _moved(self.keys, self.length, keys.new_empty(shape))
                self.values = _moved(self.values, self.length, values.new_empty(shape))
            self.keys[:, :, self.length : end] = keys
            self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


def _moved(old: Tensor | None, length: int, new: Tensor) -> Tensor:
    """Return the larger buffer `new` with the first `length` tokens of `old`."""
    if old is not None:
        new[:, :, :length] = old[:, :, :length]
    return new


class KVCache:
    """Space for `max_tokens` tokens in every layer; by default for the model's whole context."""

    def __init__(self, config: ModelConfig, max_tokens: int | None = None) -> None:
        self.layers = [LayerCache(max_tokens or config.seq_len) for _ in range(config.n_layers)]

    @property
    def length(self) -> int:
        """The number of cached tokens; the next token has this position.

        Layers without attention cache nothing.
        """
        return max(layer.length for layer in self.layers)


# ---------------------------------------------------------------- several texts


class BatchCache:
    """The keys and values of several texts, which are continued together: one row for each text.

    Texts join and leave at any time. A text is read into a KVCache first, and `join` copies it. A
    forward pass with this cache takes one new token of each text, (B, 1).

    Attributes:
        lengths: the number of cached tokens of each text, in the order of the rows.
    """

    def __init__(self, config: ModelConfig, rows: int, max_tokens: int) -> None:
        self.rows, self.max_tokens = rows, max_tokens
        self.lengths: list[int] = []
        self.layers = [BatchLayerCache(rows, max_tokens) for _ in range(config.n_layers)]

    def join(self, cache: KVCache, row: int = 0, length: int | None = None) -> None:
        """Add the text of a row of `cache` below the others: its first `length` tokens, or all.

        Raises ValueError if there is no row or no room for it.
        """
        length = cache.length if length is None else length
        if len(self.lengths) == self.rows:
            raise ValueError(f"all {self.rows} rows are taken")
        if length > self.max_tokens:
            raise ValueError(f"{length} tokens don't fit rows of {self.max_tokens}")
        for layer, read in zip(self.layers, cache.layers, strict=True):
            layer.copy(len(self.lengths), read, row, length)
        self.lengths.append(length)

    def leave(self, row: int) -> None:
        """Remove the text of a row. The text of the last row takes this row."""
        last = len(self.lengths) - 1
        for layer in self.layers:
            layer.move(last, row)
        self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    @property
    def length(self) -> int:
        """The number of cached tokens of the longest text."""
        return max(self.lengths)

    def next_positions(self, device: torch.device) -> Tensor:
        """Make room for one more token of each text; return these tokens' positions (B, 1).

        Raises ValueError if a row is full.
        """
        if max(self.lengths) == self.max_tokens:
            raise ValueError(f"{self.max_tokens + 1} tokens don't fit rows of {self.max_tokens}")
        positions = torch.tensor(self.lengths).to(device, non_blocking=True)
        self.lengths = [length + 1 for length in self.lengths]
        for layer in self.layers:
            layer.positions, layer.longest = positions, max(self.lengths)
        return positions[:, None]


class BatchLayerCache:
    """One layer's keys and values of several texts, each in a buffer (rows, heads, room, head_dim).

    `positions` (B,) says where the next token of each text is written.
    """

    def __init__(self, rows: int, max_tokens: int) -> None:
        self.rows, self.max_tokens = rows, max_tokens
        self.positions: Tensor | None = None
        self.longest = 0
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values (B, n_kv_heads, 1, head_dim); return those of B texts so far.

        The result (B, n_kv_heads, longest, head_dim) is as long as the longest text. Behind the end
        of a shorter text it has numbers of no meaning, which a mask must hide.
        """
        assert self.keys is not None
        assert self.values is not None
        assert self.positions is not None
        batch = keys.shape[0]
        rows = torch.arange(batch, device=keys.device)
        self.keys[rows, :, self.positions] = keys[:, :, 0]
        self.values[rows, :, self.positions] = values[:, :, 0]
        return self.keys[:batch, :, : self.longest], self.values[:batch, :, : self.longest]

    def copy(self, row: int, cache: LayerCache, source: int, length: int) -> None:
        """Write the first `length` keys and values in the row `source` of `cache` into a row."""
        if cache.keys is None or cache.values is None:  # a layer without attention
            return
        if self.keys is None or self.values is None:
            _, heads, _, head_dim = cache.keys.shape
            # Zeros, because a mask does not hide NaN: 0 · NaN is NaN.
            shape = (self.rows, heads, self.max_tokens, head_dim)
            self.keys, self.values = cache.keys.new_zeros(shape), cache.values.new_zeros(shape)
        self.keys[row, :, :length] = cache.keys[source, :, :length]
        self.values[row, :, :length] = cache.values[source, :, :length]

    def move(self, source: int, row: int) -> None:
        """Copy a row over another."""
        if source != row and self.keys is not None and self.values is not None:
            self.keys[row], self.values[row] = self.keys[source], self.values[source]
