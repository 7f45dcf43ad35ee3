"""Cache the keys and values of earlier tokens, for generation."""

from __future__ import annotations

import torch
from torch import Tensor

from pion.config import ModelConfig

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
