"""Grouped-query attention: which tokens see which, and the kernels that compute it.

All kernels compute the same attention (Vaswani et al. 2017, "Attention is all you need"; Ainslie et
al. 2023, "GQA"). `attend` picks the right kernel:

  * PyTorch's scaled_dot_product_attention if scores are not capped;
  * flex attention on CUDA for whole sequences with a softcap or documents; it skips the blocks that
    the documents exclude;
  * plain tensor operations for other cases with a softcap; memory is quadratic in the length;
  * plain matrix products for short sequences in bf16 on a CPU, where they are faster.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from pion.config import ModelConfig
from pion.model.cache import LayerCache
from pion.model.norm import RMSNorm, compute_dtype
from pion.model.rope import Rotation, rotate

# Flex attention's CUDA kernels need heads of at least this width.
FLEX_MIN_HEAD_DIM = 16

# In bf16 on a CPU, plain matrix products attend to sequences of up to this many tokens. At 256
# tokens they take 7 ms forward and backward; PyTorch's fused kernel takes 17.
CPU_BF16_TOKENS = 512


@dataclass(frozen=True)
class Mask:
    """Which keys each query sees. It is built once per forward pass and shared by all layers.

    With nothing set, every query sees every key. This is right for one new token after a cache.
    """

    causal: bool = False
    """Queries and keys are the same tokens; each token sees itself and the tokens before it."""
    allowed: Tensor | None = None
    """Boolean, broadcastable to (B, 1, queries, keys): true where the query sees the key."""
    blocks: Any = None
    """`allowed` as flex attention's BlockMask."""


def build_mask(
    config: ModelConfig,
    queries: int,
    keys: int,
    documents: Tensor | None,
    device: torch.device,
) -> Mask:
    """Return the mask for the last `queries` of `keys` tokens.

    Each token sees itself and the tokens before it; with documents (B, T), only tokens of its own
    document.
    """
    if queries == 1:
        return Mask()
    if documents is None and config.softcap is None and queries == keys:
        return Mask(causal=True)
    if device.type == "cuda" and queries == keys and config.head_dim >= FLEX_MIN_HEAD_DIM:
        return Mask(blocks=block_mask(queries, documents, device))
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
    if documents is not None:
        allowed = allowed & (documents[:, None, :, None] == documents[:, None, None, :])
    return Mask(allowed=allowed)


def block_mask(tokens: int, documents: Tensor | None, device: torch.device) -> Any:
    """Return the causal mask, within documents (B, T) if given, as flex attention's BlockMask."""
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        if documents is None:
            return query >= key
        return (query >= key) & (documents[batch, query] == documents[batch, key])

    batch = None if documents is None else documents.shape[0]
    return create_block_mask(visible, batch, None, tokens, tokens, device=device)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Mask, softcap: float | None) -> Tensor:
    """Return softmax attention with scale head_dim^-½: (B, n_heads, T, head_dim).

    `query` is (B, n_heads, T, head_dim); `key` and `value` are (B, n_kv_heads, keys, head_dim).
    Consecutive groups of n_heads / n_kv_heads query heads share a key/value head.
    """
    if mask.blocks is not None:
        return attend_flex(query, key, value, mask.blocks, softcap)
    if softcap is not None:
        return attend_softcapped(query, key, value, mask.allowed, softcap)
    short = query.shape[2] == key.shape[2] <= CPU_BF16_TOKENS
    if short and query.dtype == torch.bfloat16 and query.device.type == "cpu":
        return attend_short(query, key, value, mask)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask.allowed, is_causal=mask.causal, enable_gqa=True
    )


def attend_softcapped(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, softcap: float
) -> Tensor:
    """Return attention over the scores softcap · tanh(s / softcap), computed in fp32.

    The cap is from Gemma 2 (Gemma Team 2024). Shapes are as in `attend`.
    """
    batch, heads, tokens, head_dim = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, tokens, head_dim)
    scores = (grouped @ key[:, :, None].transpose(-1, -2)).float() * head_dim**-0.5
    scores = softcap * torch.tanh(scores / softcap)
    if allowed is not None:
        allowed = allowed.view(-1, 1, 1, *allowed.shape[-2:])
        scores = scores.masked_fill(~allowed, float("-inf"))
    weights = scores.softmax(dim=-1).to(value.dtype)
    return (weights @ value[:, :, None]).reshape(batch, heads, tokens, head_dim)


def attend_short(query: Tensor, key: Tensor, value: Tensor, mask: Mask) -> Tensor:
    """Return the attention of whole sequences, computing all scores at once in the tensors' dtype.

    Query heads that share a key/value head are neighbors. They are folded into one longer query, so
    that no key or value is repeated. Shapes are as in `attend`.
    """
    batch, heads, tokens, head_dim = query.shape
    kv_heads = key.shape[1]
    allowed = mask.allowed
    if allowed is None:
        allowed = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    hidden = torch.zeros(allowed.shape, dtype=query.dtype).masked_fill_(~allowed, float("-inf"))
    folded = query.reshape(batch * kv_heads, -1, head_dim)
    scores = (folded * head_dim**-0.5) @ key.reshape(-1, tokens, head_dim).transpose(1, 2)
    scores = scores.view(batch, heads, tokens, tokens) + hidden
    weights = scores.softmax(dim=-1).view(batch * kv_heads, -1, tokens)
    mixed = weights @ value.reshape(-1, tokens, head_dim)
    return mixed.view(batch, heads, tokens, head_dim)


def attend_flex(
    query: Tensor, key: Tensor, value: Tensor, blocks: Any, softcap: float | None
) -> Tensor:
    """Return the attention of whole sequences masked by a BlockMask, computed by flex attention.

    Shapes are as in `attend`.
    """
    score_mod = None
    if softcap is not None:
        cap = softcap

        def score_mod(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return cap * torch.tanh(score / cap)

    return _flex_attention()(
        query, key, value, score_mod=score_mod, block_mask=blocks, enable_gqa=True
    )


@lru_cache(maxsize=1)
def _flex_attention() -> Callable[..., Tensor]:
    # Without torch.compile, flex attention is a slow reference that computes all scores.
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


class Attention(nn.Module):
    """Project, normalize each query and key head, rotate to positions, attend, project back.

    Queries and keys are normalized per head as in Qwen3 (Qwen Team 2025, "Qwen3 technical report").
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        query_width = config.n_heads * config.head_dim
        kv_width = config.n_kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.softcap = config.softcap
        self.q_proj = nn.Linear(config.d_model, query_width, bias=False)
        self.k_proj = nn.Linear(config.d_model, kv_width, bias=False)
        self.v_proj = nn.Linear(config.d_model, kv_width, bias=False)
        self.o_proj = nn.Linear(query_width, config.d_model, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps)

    def forward(
        self, x: Tensor, rotation: Rotation, mask: Mask, cache: LayerCache | None
    ) -> Tensor:
        """Map (B, T, d_model) to (B, T, d_model). A cache, if given, has the earlier tokens."""
        batch, tokens, _ = x.shape
        dtype = compute_dtype(x, self.q_proj.weight)
        x = x.to(dtype)
        query = self.q_proj(x).view(batch, tokens, -1, self.head_dim)
        key = self.k_proj(x).view(batch, tokens, -1, self.head_dim)
        value = self.v_proj(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        query = rotate(self.q_norm(query), rotation).to(dtype).transpose(1, 2)
        key = rotate(self.k_norm(key), rotation).to(dtype).transpose(1, 2)
        if cache is not None:
            key, value = cache.extend(key, value)
        mixed = attend(query, key, value, mask, self.softcap)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates with weights for one token."""
        projections = (self.q_proj, self.k_proj, self.v_proj, self.o_proj)
        return sum(projection.weight.numel() for projection in projections)

    def macs_per_key(self) -> int:
        """Return the multiply-accumulates for one token and one key: its score and its value."""
        return 2 * self.q_proj.out_features

    def kept_bytes_per_token(self, width: int) -> int:
        """Return the bytes kept for the backward pass.

        These are queries and keys before and after their norm, in fp32; and the rotated queries and
        keys, the values and the result of attention.
        """
        query, kv = self.q_proj.out_features, self.k_proj.out_features
        return 8 * (query + kv) + 2 * width * (query + kv)
