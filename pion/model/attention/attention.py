"""Grouped-query attention, and the kernels that compute it.

All kernels compute the same attention (Vaswani et al. 2017, "Attention is all you need"; Ainslie et
al. 2023, "GQA"). `attend` picks the right kernel:

  * PyTorch's scaled_dot_product_attention if scores are not capped; on CUDA, the query heads of a
    group are folded where a few new tokens attend to a cache;
  * flex attention on CUDA for whole sequences with a softcap, documents or windows; it skips the
    blocks that documents and windows exclude;
  * PyTorch's kernel for one document after another, in long rows of documents on a CPU;
  * plain tensor operations for other cases with a softcap; memory is quadratic in the length;
  * plain matrix products for short sequences in bf16 on a CPU, where they are faster.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from pion.config.model_config import ModelConfig
from pion.config.parts import Heads
from pion.model.attention.cache import LayerCache, Place
from pion.model.attention.masks import Mask
from pion.model.attention.rope import Rotation, rotate
from pion.model.norm_and_projection import (
    Projection,
    RMSNorm,
    compute_dtype,
    join,
    project,
    project_together,
)

# In bf16 on a CPU, plain matrix products attend to sequences of up to this many tokens. At 256
# tokens they take 7 ms forward and backward; PyTorch's fused kernel takes 17.
CPU_BF16_TOKENS = 512

# On a GPU, up to this many new tokens of each text attend to a cache with their query heads folded.
# Folding repeats the mask for each query head of a group. With more tokens, the mask would soon be
# larger than the keys that it saves.
FOLDED_TOKENS = 64


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Mask,
    softcap: float | None,
    scale: float | None = None,
) -> Tensor:
    """Return softmax attention, with the scale head_dim^-½ by default: (B, n_heads, T, head_dim).

    `query` is (B, n_heads, T, head_dim); `key` and `value` are (B, n_kv_heads, keys, head_dim).
    Consecutive groups of n_heads / n_kv_heads query heads share a key/value head.
    """
    if mask.documents is not None:
        return attend_by_document(query, key, value, mask.documents, scale)
    if mask.blocks is not None:
        return attend_flex(query, key, value, mask.blocks, softcap, scale)
    if softcap is not None:
        return attend_softcapped(query, key, value, mask.allowed, softcap, scale)
    tokens, keys = query.shape[2], key.shape[2]
    if query.is_cuda and tokens < keys and tokens <= FOLDED_TOKENS:
        return attend_folded(query, key, value, mask.allowed, scale)
    short = tokens == keys <= CPU_BF16_TOKENS
    if short and query.dtype == torch.bfloat16 and query.device.type == "cpu":
        return attend_short(query, key, value, mask, scale)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask.allowed,
        is_causal=mask.causal,
        scale=scale,
        enable_gqa=True,
    )


def kernels_of_any_length(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which `attend` takes no kernel that is made for one length.

    On Hopper, PyTorch prefers cuDNN's attention. cuDNN makes a plan for each new number of keys:
    on an H200, each generated token took 50 ms while its plan was new, and 8 ms later. Training,
    whose rows have one length, is faster with cuDNN.
    """
    if device.type != "cuda":
        return nullcontext()
    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    without_plans: AbstractContextManager[None] = sdpa_kernel(kernels)
    return without_plans


def attend_softcapped(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    softcap: float,
    scale: float | None = None,
) -> Tensor:
    """Return attention over the scores softcap · tanh(s / softcap), computed in fp32.

    The cap is from Gemma 2 (Gemma Team 2024). Shapes are as in `attend`.
    """
    batch, heads, tokens, head_dim = query.shape
    kv_heads = key.shape[1]
    folded = query.reshape(batch, kv_heads, -1, head_dim)
    scores = (folded @ key.transpose(-1, -2)).float() * (scale or head_dim**-0.5)
    scores = softcap * torch.tanh(scores / softcap)
    if allowed is not None:
        allowed = allowed.view(-1, 1, 1, *allowed.shape[-2:])
        apart = scores.view(batch, kv_heads, -1, tokens, key.shape[2])
        scores = apart.masked_fill(~allowed, float("-inf")).view(scores.shape)
    weights = scores.softmax(dim=-1).to(value.dtype)
    return (weights @ value).view(batch, heads, tokens, head_dim)


def attend_folded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None,
    scale: float | None = None,
) -> Tensor:
    """Return the attention of the next tokens of texts to the keys of a cache.

    The query heads of a group are folded into one longer query, so that no kernel repeats keys for
    each of them. Before torch 2.15, each kernel on CUDA that takes a mask would. Without `allowed`,
    each token sees every key. Shapes are as in `attend`.
    """
    batch, heads, tokens, head_dim = query.shape
    kv_heads = key.shape[1]
    if allowed is not None and tokens > 1:
        of_token = allowed.view(-1, 1, 1, *allowed.shape[-2:])
        allowed = of_token.expand(-1, -1, heads // kv_heads, -1, -1).flatten(2, 3)
    folded = query.reshape(batch, kv_heads, -1, head_dim)
    result = scaled_dot_product_attention(folded, key, value, attn_mask=allowed, scale=scale)
    return result.reshape(batch, heads, tokens, head_dim)


def attend_short(
    query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float | None = None
) -> Tensor:
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
    scores = (folded * (scale or head_dim**-0.5)) @ key.reshape(-1, tokens, head_dim).transpose(
        1, 2
    )
    scores = scores.view(batch, heads, tokens, tokens) + hidden
    weights = scores.softmax(dim=-1).view(batch * kv_heads, -1, tokens)
    return (weights @ value.reshape(-1, tokens, head_dim)).view(batch, heads, tokens, head_dim)


def attend_by_document(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: list[int],
    scale: float | None = None,
) -> Tensor:
    """Return the attention of whole sequences with these documents (`Mask.documents`).

    Scores between documents are never computed. Shapes are as in `attend`.
    """
    batch, _, tokens, _ = query.shape
    query, key, value = (each.transpose(1, 2).flatten(0, 1) for each in (query, key, value))
    own = (each.transpose(0, 1)[None].split(documents, dim=2) for each in (query, key, value))
    parts = [
        scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        for q, k, v in zip(*own, strict=True)
    ]
    mixed = torch.cat(parts, dim=2)[0].transpose(0, 1)
    return mixed.unflatten(0, (batch, tokens)).transpose(1, 2)


def attend_flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    blocks: Any,
    softcap: float | None,
    scale: float | None = None,
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
        query, key, value, score_mod=score_mod, block_mask=blocks, scale=scale, enable_gqa=True
    )


def _flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    plain: Callable[..., Tensor] = flex_attention
    return plain if torch.compiler.is_compiling() else _compiled_flex_attention()


@lru_cache(maxsize=1)
def _compiled_flex_attention() -> Callable[..., Tensor]:
    # Without torch.compile, flex attention is a slow reference that computes all scores.
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


class ValueMix(NamedTuple):
    """What becomes of a layer's values v: own · v + table · embedded (Zhou et al. 2024, "Value
    residual learning"; the tables are Daisy-Wee's).

    `own` and `table` are scalars. `embedded` (B, T, n_kv_heads · head_dim) has a vector for each
    token id, or is None in a layer without a table.
    """

    own: Tensor
    table: Tensor
    embedded: Tensor | None


class Cached(NamedTuple):
    """Where a layer has the earlier tokens, and where it puts those of the pass."""

    layer: LayerCache
    place: Place


class AttentionInputs(NamedTuple):
    """What attention gets besides the hidden states. A cache, if given, has the earlier tokens."""

    rotation: Rotation | None
    mask: Mask
    cache: Cached | None = None
    values: ValueMix | None = None


class Joined(NamedTuple):
    """The projections of queries, keys and values as one product, for generation.

    `weight` is (query and key/value widths, d_model), `bias` has one number for each of its rows,
    and `gains` (n_heads + n_kv_heads, head_dim) are those of the norms of queries and keys.
    """

    weight: Tensor
    bias: Tensor | None
    gains: Tensor | None


def _normed(x: Tensor, norm: RMSNorm) -> Tensor:
    """Return x (B, T, heads, head_dim) normalized by head, or over all heads, in fp32."""
    return norm(x) if norm.width == x.shape[-1] else norm(x.flatten(2)).view_as(x)


class Attention(nn.Module):
    """Project, normalize each query and key head, rotate to positions, attend, project back.

    Queries and keys are normalized per head as in Qwen3 (Qwen Team 2025, "Qwen3 technical report"),
    or with `heads.whole_norm` over all heads as in OLMo 2 (OLMo Team 2025, "2 OLMo 2 Furious").
    With `heads.qkv_bias`, queries, keys and values have biases as in Qwen2 (Qwen Team 2024, "Qwen2
    technical report").
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        query_width = config.n_heads * config.head_dim
        kv_width = config.n_kv_heads * config.head_dim
        heads = config.heads or Heads()
        self.scale = heads.scale
        self.q_proj = Projection(config.d_model, query_width, bias=heads.qkv_bias)
        self.k_proj = Projection(config.d_model, kv_width, bias=heads.qkv_bias)
        self.v_proj = Projection(config.d_model, kv_width, bias=heads.qkv_bias)
        self.o_proj = Projection(query_width, config.d_model, bias=heads.output_bias)
        norm = partial(RMSNorm.of, config)
        widths = (query_width, kv_width) if heads.whole_norm else (config.head_dim,) * 2
        self.q_norm = norm(widths[0]) if heads.qk_norm else None
        self.k_norm = norm(widths[1]) if heads.qk_norm else None
        self.v_norm = norm(config.head_dim) if heads.value_norm else None
        self._whole_norm, self._pairs = heads.whole_norm, heads.rotary_pairs
        self._joined: Joined | None = None

    def join_projections(self) -> None:
        """Compute queries, keys and values as one product from now on; see Decoder."""
        weight, bias = join([self.q_proj, self.k_proj, self.v_proj])
        gains = None
        if self.q_norm is not None and self.k_norm is not None and not self._whole_norm:
            query, key = self.q_norm.gain(), self.k_norm.gain()
            if query is not None and key is not None:
                heads, kv_heads = self.config.n_heads, self.config.n_kv_heads
                gains = torch.stack([query.detach()] * heads + [key.detach()] * kv_heads)
        self._joined = Joined(weight, bias, gains)

    def heads(self, x: Tensor, inputs: AttentionInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, (B, heads, T, head_dim), of x (B, T, d_model)."""
        rotation, values = inputs.rotation, inputs.values
        batch, tokens, _ = x.shape
        dtype = compute_dtype(x, self.q_proj.weight)
        x = x.to(dtype)
        if self._joined is None:
            projections = (self.q_proj, self.k_proj, self.v_proj)
            # Attention writes the gradients of plain heads one by one. To join them is a copy.
            additions = (rotation, self.q_norm, self.v_norm, values)
            plain = all(addition is None for addition in additions)
            three = [p(x) for p in projections] if plain else project_together(x, projections)
            query, key, value = (
                each.view(batch, tokens, -1, self.config.head_dim) for each in three
            )
            if self.q_norm is not None and self.k_norm is not None:
                query, key = _normed(query, self.q_norm), _normed(key, self.k_norm)
            if rotation is not None:
                query, key = (rotate(each, rotation, self._pairs) for each in (query, key))
            query, key = query.to(dtype).transpose(1, 2), key.to(dtype).transpose(1, 2)
        else:
            query, key, value = self._project_joined(x, rotation)
        if rotation is not None and rotation.growth is not None:
            query = (query * rotation.growth).to(dtype)
        if self.v_norm is not None:
            value = self.v_norm(value)
        if values is not None:
            value = value * values.own
            if values.embedded is not None:
                value = value + values.table * values.embedded.view_as(value)
        return query, key, value.to(dtype).transpose(1, 2)

    def mix(self, heads: tuple[Tensor, Tensor, Tensor], inputs: AttentionInputs) -> Tensor:
        """Return the values that the queries see, those of the cache too, mixed: (B, T, width)."""
        query, key, value = heads
        if inputs.cache is not None:
            key, value = inputs.cache.layer.extend(key, value, inputs.cache.place)
        mixed = attend(query, key, value, inputs.mask, self.config.softcap, self.scale)
        return mixed.transpose(1, 2).flatten(2)

    def _project_joined(
        self, x: Tensor, rotation: Rotation | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what `heads` does before it looks at values, with fewer operations."""
        assert self._joined is not None
        (weight, bias, gains), config = self._joined, self.config
        every = project(x, weight, bias).view(*x.shape[:2], -1, self.config.head_dim)
        both, value = every.split((config.n_heads + config.n_kv_heads, config.n_kv_heads), dim=2)
        if self.q_norm is not None and self.k_norm is not None and self._whole_norm:
            query, key = both.split((config.n_heads, config.n_kv_heads), dim=2)
            both = torch.cat((_normed(query, self.q_norm), _normed(key, self.k_norm)), dim=2)
        elif self.q_norm is not None:
            both = rms_norm(both.float(), (self.config.head_dim,), eps=config.norm_eps)
        if gains is not None:
            both = both * gains
        if rotation is not None:
            both = rotate(both, rotation, self._pairs)
        both = both.to(x.dtype).transpose(1, 2)
        query, key = both.split((config.n_heads, config.n_kv_heads), dim=1)
        return query, key, value

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates with weights for one token."""
        projections = (self.q_proj, self.k_proj, self.v_proj, self.o_proj)
        return sum(projection.weight.numel() for projection in projections)

    def macs_per_key(self) -> int:
        """Return the multiply-accumulates for one token and one key: its score and its value."""
        return 2 * self.q_proj.out_features
