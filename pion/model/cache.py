"""Keys and values of the tokens already read, kept for generation."""

from __future__ import annotations

import torch
from torch import Tensor

from pion.config import ModelConfig


class KVCache:
    """Room for `max_tokens` keys and values in each layer, filled from the left.

    A layer's two buffers, (B, n_kv_heads, max_tokens, head_dim) each, are allocated whole at the
    first write, in the dtype and on the device of what is written. Cached calls are for inference:
    no gradient flows through what the cache holds.
    """

    def __init__(self, config: ModelConfig, max_tokens: int | None = None) -> None:
        self.max_tokens = max_tokens or config.seq_len
        self.length = 0
        """Tokens held; the position of the next one."""
        self._keys: list[Tensor | None] = [None] * config.n_layers
        self._values: list[Tensor | None] = [None] * config.n_layers

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's new keys and values; return all it holds, new ones included.

        The new ones are (B, n_kv_heads, T, head_dim). Every layer of a forward pass writes at the
        same place: `advance` moves on when the last has written.
        """
        end = self.length + keys.shape[2]
        if end > self.max_tokens:
            raise ValueError(f"{end} tokens don't fit a cache of {self.max_tokens}")
        return (
            self._store(self._keys, layer, keys, end),
            self._store(self._values, layer, values, end),
        )

    def _store(self, buffers: list[Tensor | None], layer: int, new: Tensor, end: int) -> Tensor:
        batch, heads, _, head_dim = new.shape
        buffer = buffers[layer]
        if buffer is None:
            buffer = new.new_empty(batch, heads, self.max_tokens, head_dim)
            buffers[layer] = buffer
        with torch.no_grad():
            buffer[:, :, self.length : end] = new
        return buffer[:, :, :end]

    def advance(self, tokens: int) -> None:
        """Count the tokens every layer has now stored."""
        self.length += tokens
