"""Compute the log-probability of each target over a large vocabulary, one chunk at a time.

A loss of sequences, such as that of preferences, weighs each token by what all tokens of both
sequences are worth. So the gradient by the logits is not known in the forward pass, as it is in
loss.py. The backward pass computes the logits again, a chunk at a time. If the head is frozen, the
forward pass can store the gradient by the hidden states, which the backward pass only scales.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pion.model.chunks_of_logits import (
    IGNORED,
    CompiledChunks,
    PlainChunks,
    gradient_in_place,
    relative_softmax,
    softmax_in_place,
)
from pion.model.norm_and_projection import compute_dtype


def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cap: float | None = None,
    *,
    compiled: bool = False,
) -> Tensor:
    """Return the log-probability of each target in softmax(hidden @ weightᵀ), in nats.

    `hidden` is (N, d_model), `weight` (vocab, d_model) and `targets` (N,). The result (N,) is fp32,
    and 0 for the target IGNORED. A `cap` is applied to the logits (`cap_logits`). Never more than
    one chunk of logits exists. Products use autocast's dtype if autocast is on; softmax and all
    sums are fp32. `compiled` computes with kernels of torch.compile, where a result is at least
    about −100 (MOST_ABOVE). The backward pass computes the logits a second time, unless `weight`
    needs no gradient.
    """
    dtype = compute_dtype(hidden, weight)
    if not torch.is_grad_enabled() or not (hidden.requires_grad or weight.requires_grad):
        forward = _compiled_forward if compiled else _plain_forward
        return forward(hidden, weight, targets, cap, dtype)[0]
    function = _OfLearnedHead if weight.requires_grad else _OfFrozenHead
    result: Tensor = function.apply(hidden, weight, targets, cap, (dtype, compiled))
    return result


class _OfLearnedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        cap: float | None,
        how: tuple[torch.dtype, bool],
    ) -> Tensor:
        ctx.cap, (ctx.dtype, ctx.compiled) = cap, how
        forward = _compiled_forward if ctx.compiled else _plain_forward
        log_probs, *sums = forward(hidden, weight, targets, cap, ctx.dtype)
        ctx.save_for_backward(hidden, weight, targets, *sums)
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden, weight, targets, *sums = ctx.saved_tensors
        given = hidden, weight, targets, ctx.cap, ctx.dtype
        if ctx.compiled:
            grad_hidden, grad_weight = _compiled_backward(given, grad)
        else:
            grad_hidden, grad_weight = _plain_backward(given, sums, grad)
        return grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype), None, None, None


class _OfFrozenHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        cap: float | None,
        how: tuple[torch.dtype, bool],
    ) -> Tensor:
        dtype, compiled = how
        forward = _compiled_with_gradient if compiled else _plain_with_gradient
        log_probs, by_hidden, ctx.factors = forward((hidden, weight, targets, cap, dtype))
        ctx.gradients, ctx.hidden_dtype = by_hidden, hidden.dtype
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("backward scales the stored gradients in place: call it only once")
        # Dropping our reference lets autograd keep this tensor without a copy.
        grad_hidden, ctx.gradients = ctx.gradients, None
        scaled = grad_hidden.mul_(ctx.factors * grad[:, None])
        return scaled.to(ctx.hidden_dtype), None, None, None, None


# What both ways are given: hidden, weight, targets, cap, and the dtype of products.
_Given = tuple[Tensor, Tensor, Tensor, float | None, torch.dtype]


# ---------------------------------------------------------------- plain


def _plain_forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Return the log-probabilities (N,). Of each row, also return the largest logit (N, 1), and the
    sum of exponentials of logits minus the largest (N, 1). Their logsumexp would be one number
    instead of two, but rounded: in fp32, exp(500 − 500.00003) is not 1.
    """
    log_probs = torch.zeros(len(hidden), device=hidden.device)
    tops, totals = (torch.zeros(len(hidden), 1, device=hidden.device) for _ in range(2))
    with torch.autocast(hidden.device.type, enabled=False):
        chunks = PlainChunks(hidden, weight, targets, cap, dtype)
        for part in chunks.parts:
            chunk = chunks.chunk(part)
            _, total, of_target, top = softmax_in_place(chunk)
            log_probs[chunk.rows] = ((of_target - total.log()) * chunk.valid)[:, 0]
            tops[chunk.rows], totals[chunk.rows] = top, total
    return log_probs, tops, totals


def _plain_backward(given: _Given, sums: list[Tensor], grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the fp32 gradients by `hidden` and by `weight`."""
    (hidden, weight, _, _, dtype), (tops, totals) = given, sums
    grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
    grad_weight = torch.zeros_like(weight, dtype=torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        chunks = PlainChunks(*given)
        for part in chunks.parts:
            chunk = chunks.chunk(part)
            exp, total = chunk.logits.sub_(tops[chunk.rows]).exp_(), totals[chunk.rows]
            grad_logits = gradient_in_place(chunk, exp, total)
            # The d_model side of both products has the factors, where they are cheap.
            factors = -grad[chunk.rows, None] * chunk.valid / total
            grad_hidden[chunk.rows] = (grad_logits @ chunks.weight) * factors
            chunks.add_by_weight(grad_weight, grad_logits, (chunk.states * factors).to(dtype))
    return grad_hidden, grad_weight


def _plain_with_gradient(given: _Given) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log-probabilities (N,), and their gradient by `hidden` in two parts: fp32
    (N, d_model), and factors of the rows (N, 1)."""
    hidden = given[0]
    log_probs = torch.zeros(len(hidden), device=hidden.device)
    factors = torch.zeros(len(hidden), 1, device=hidden.device)
    grad_hidden = torch.zeros_like(hidden, dtype=torch.float32)
    with torch.autocast(hidden.device.type, enabled=False):
        chunks = PlainChunks(*given)
        for part in chunks.parts:
            chunk = chunks.chunk(part)
            exp, total, of_target, _ = softmax_in_place(chunk)
            log_probs[chunk.rows] = ((of_target - total.log()) * chunk.valid)[:, 0]
            factors[chunk.rows] = -(chunk.valid / total)
            by_hidden = gradient_in_place(chunk, exp, total) @ chunks.weight
            grad_hidden[chunk.rows] = by_hidden.float()
    return log_probs, grad_hidden, factors


# ---------------------------------------------------------------- compiled


def _compiled_forward(
    hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Return the log-probabilities (N,). The backward pass adds up again, which costs nothing."""
    log_probs_of_logits, results = _compiled_log_probs_of_logits(), []
    with torch.autocast(hidden.device.type, enabled=False):
        chunks = CompiledChunks(hidden, weight, dtype)
        for part in chunks.parts:
            logits = chunks.logits(part)
            of_target = logits.gather(1, targets[part].clamp(min=0)[:, None])
            results.append(
                log_probs_of_logits(logits, of_target, targets[part], dtype, len(weight), cap)
            )
            del logits
    return (torch.cat(results),)


def _compiled_backward(given: _Given, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Return the fp32 gradients by `hidden` and by `weight`, of weighted log-probabilities."""
    _, factors, grad_hidden, grad_weight = _compiled_gradients(given, grad, learned_head=True)
    assert grad_weight is not None
    return grad_hidden.mul_(factors), grad_weight


def _compiled_with_gradient(given: _Given) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_plain_with_gradient` returns."""
    equal = torch.ones(len(given[0]), device=given[0].device)
    log_probs, factors, grad_hidden, _ = _compiled_gradients(given, equal, learned_head=False)
    return log_probs, grad_hidden, factors


def _compiled_gradients(
    given: _Given, grad: Tensor, *, learned_head: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the log-probabilities (N,), and the gradient by `hidden` of their sum weighted by
    `grad` (N,), in two parts: factors of the rows (N, 1), and fp32 (N, d_model). Last, the fp32
    gradient by `weight`, if it is learned."""
    hidden, weight, targets, cap, dtype = given
    gradient_of_log_probs = _compiled_gradient_of_log_probs()
    with torch.autocast(hidden.device.type, enabled=False):
        chunks = CompiledChunks(hidden, weight, dtype)

        def kernel(part: slice, logits: Tensor, of_target: Tensor) -> tuple[Tensor, ...]:
            row_values = of_target, targets[part], grad[part]
            return gradient_of_log_probs(logits, row_values, chunks.states[part], len(weight), cap)

        gradients = chunks.gradients(targets, kernel, learned_head=learned_head)
    return torch.cat(gradients[0]), *gradients[1:]


# Each shape has kernels for itself; see loss.py.
@lru_cache(maxsize=1)
def _compiled_log_probs_of_logits() -> Callable[..., Tensor]:
    return torch.compile(_log_probs_of_logits, dynamic=False, fullgraph=True)


@lru_cache(maxsize=1)
def _compiled_gradient_of_log_probs() -> Callable[..., tuple[Tensor, ...]]:
    return torch.compile(_gradient_of_log_probs, dynamic=False, fullgraph=True)


def _log_probs_of_logits(
    logits: Tensor,
    of_target: Tensor,
    targets: Tensor,
    dtype: torch.dtype,
    vocab: int,
    cap: float | None,
) -> Tensor:
    """Return the log-probabilities (N,) of the products (N, columns)."""
    losses = relative_softmax(logits, of_target, dtype, vocab, cap)[0]
    return -(losses[:, 0] * (targets != IGNORED))


def _gradient_of_log_probs(
    logits: Tensor,
    row_values: tuple[Tensor, Tensor, Tensor],
    states: Tensor,
    vocab: int,
    cap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the log-probabilities (N,) of products (N, columns), and what gradients are made of.

    `row_values` are the targets' products (N, 1), the targets (N,), and what the gradient of each
    row is multiplied by (N,). See `_gradient_of_logits` in loss.py for the other results: this is
    the gradient of the loss, and the sign is in the factors.
    """
    of_target, targets, grad = row_values
    dtype = states.dtype
    losses, gradient, own, total = relative_softmax(logits, of_target, dtype, vocab, cap)
    valid = targets != IGNORED
    factors = -(grad * valid)[:, None] / total
    return -(losses[:, 0] * valid), gradient, own, factors, (states * factors).to(dtype)
