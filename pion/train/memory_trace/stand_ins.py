"""What a trace puts in place of code that asks a driver or reads the values of tensors.

A fake tensor has a shape, a dtype and a device, but no values. Each stand-in makes the tensors that
the original makes, of the largest size that values can lead to.

It replaces private names of pion/model. A renamed one is an AttributeError in every trace; one that
is no longer called makes memory wrong: see tests/pion/train/memory_trace and tests/cuda_rehearsal.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from pion.model import chunks_of_logits
from pion.model.attention import attention, masks, rope
from pion.model.feedforward import expert_products

# Operations that torch sees from outside. A trace runs their bodies, which allocate.
OPENED = {
    operation._opoverload: operation._init_fn
    for operation in (expert_products._sliced_mixture, expert_products._sliced_mixture_backward)
}


@contextlib.contextmanager
def stand_ins(device_type: str, capability: tuple[int, int] | None) -> Iterator[None]:
    """Put all stand-ins in place, for a device of this type and capability."""
    # A table of fake tensors must not get into the cache of the others.
    table_of_its_own = lru_cache(maxsize=8)(rope.rotary_table.__wrapped__)
    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (torch.cuda, "get_device_capability", lambda device=None: capability),
            (attention, "_flex_attention", lambda: _flex_attention),
            (rope, "rotary_table", table_of_its_own),
            (masks, "document_lengths", _one_document_a_row),
            (expert_products, "_slices", _full_slices),
            (expert_products, "_zeros_if_idle", lambda matrix, ends: torch.empty_like(matrix)),
            (chunks_of_logits, "_learned_rows", lambda targets: torch.arange(len(targets))),
            (chunks_of_logits, "compiled", KERNELS.__getitem__),
        ):
            stack.enter_context(replaced(owner, name, value))
        if device_type == "cuda":
            stack.enter_context(
                replaced(attention, "scaled_dot_product_attention", _fused_attention)
            )
            stack.enter_context(replaced(chunks_of_logits, "product_in_fp32", _product_in_fp32))
        yield


@contextlib.contextmanager
def replaced(owner: Any, name: str, stand_in: Callable[..., Any]) -> Iterator[None]:
    """Let the function `owner.name` be another one inside the `with` block, for this thread.

    Other threads, which may train or generate, call the original. Only one thread may do this at a
    time: the second would keep the stand-in of the first.
    """
    before, traces = getattr(owner, name), threading.get_ident()

    def chosen(*arguments: Any, **options: Any) -> Any:
        here = threading.get_ident() == traces
        return (stand_in if here else before)(*arguments, **options)

    setattr(owner, name, chosen)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    """Call the kernel that torch chooses on a card, without asking the driver."""
    aten = torch.ops.aten
    if attn_mask is None and query.dtype == torch.bfloat16:
        width = query.shape[-1]
        padding = -width % 8
        if padding:
            query, key, value = (pad(each, (0, padding)) for each in (query, key, value))
        result: Tensor = aten._scaled_dot_product_flash_attention(
            query, key, value, 0.0, is_causal, False, scale=scale
        )[0]
        return result[..., :width] if padding else result
    if query.shape[1] != key.shape[1] and not _efficient_takes_fewer_keys():
        plain: Tensor = aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=True
        )[0]
        return plain
    bias = None
    if attn_mask is not None:  # torch turns the mask into numbers to add to the scores
        bias = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
        bias = bias.expand(*query.shape[:3], key.shape[2])
    computed: Tensor = aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, True, 0.0, is_causal, scale=scale
    )[0]
    return computed


@lru_cache(maxsize=1)
@torch.enable_grad()  # the first call may come from a pass without gradients
def _efficient_takes_fewer_keys() -> bool:
    """Return whether torch's memory-efficient kernel takes fewer heads of keys than of queries.
    Torch 2.11's does not: it computes all scores, which needs more memory."""
    with torch.device("meta"):
        query, *pair = (torch.empty(1, heads, 8, 8, requires_grad=True) for heads in (4, 2, 2))
    aten = torch.ops.aten
    result = aten._scaled_dot_product_efficient_attention(query, *pair, None, True, 0.0, True)
    try:
        torch.autograd.grad(result[0].sum(), pair)
    except RuntimeError:
        return False
    return True


def _flex_attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
    """Flex attention keeps what fused attention keeps: its arguments, the result and logsumexps."""
    return _fused_attention(query, key, value, is_causal=True)


# ---------------------------------------------------------------- values


def _one_document_a_row(documents: Tensor) -> list[int]:
    rows, tokens = documents.shape
    return [tokens] * rows


def _full_slices(
    x: Tensor, weights: Tensor, order: Tensor, ends: Tensor
) -> Iterator[expert_products._Slice]:
    """Let all tokens choose the same experts."""
    tokens, top_k = weights.shape
    flat = weights.flatten()
    for expert in range(top_k):
        rows = slice(expert * tokens, (expert + 1) * tokens)
        choices = order[rows]
        yield expert_products._Slice(
            expert, choices, rows, choices // top_k, flat[choices][:, None]
        )


def _log_probs_of_logits(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty(len(logits), dtype=torch.float32)


def _gradient_of_logits(
    logits: Tensor, targets: Tensor, weights: Tensor | None, *_: Any
) -> tuple[Tensor, Tensor]:
    """Compiled kernels allocate only their results."""
    shape = () if weights is None else (len(logits),)
    return logits.new_empty(shape, dtype=torch.float32), torch.empty_like(logits)


# What allocates as each kernel does, if this is compiled.
KERNELS = {
    chunks_of_logits.gradient_of_logits: _gradient_of_logits,
    chunks_of_logits.log_probs_of_logits: _log_probs_of_logits,
}


def _product_in_fp32(
    a: Tensor, b: Tensor, *, added: Tensor | None = None, into: Tensor | None = None
) -> Tensor:
    """Torch 2.11 does not know the shapes of products of bf16 that write fp32."""
    return a.new_empty(len(a), b.shape[1], dtype=torch.float32) if into is None else into
