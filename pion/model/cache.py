"""Cache the keys and values of earlier tokens, for generation."""

from __future__ import annotations

import torch
from torch import Tensor

from pion.config import ModelConfig


class LayerCache:
    """One layer's keys and values, each in a buffer (B, n_kv_heads, max_tokens, head_dim).

    The first write allocates the whole buffers, with the dtype and device of the written tensors.
    No gradient flows through them.
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
        if self.keys is None or self.values is None:
            self.keys = keys.new_empty(batch, heads, self.max_tokens, head_dim)
            self.values = torch.empty_like(self.keys)
        with torch.no_grad():
            self.keys[:, :, self.length : end] = keys
            self.values[:, :, self.length : end] = values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


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
