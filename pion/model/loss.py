"""Compute cross-entropies and log-probabilities over a large vocabulary, one chunk at a time.

There are two ways, with the same result up to rounding. The plain way works in place on one buffer
of logits; this is the reference, and the fast way on a CPU. The compiled way leaves what lies
between the matrix products to torch.compile, and is the fast way on a GPU. See chunks_of_logits.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pion.config.model_config import ModelConfig
from pion.model.chunks_of_logits import (
    IGNORED,
    Cap,
    CompiledChunks,
    Given,
    PlainChunks,
    softmax_in_place,
)
from pion.model.norm_and_projection import compute_dtype

__all__ = ["IGNORED", "Cap", "cap_logits", "cap_of", "linear_cross_entropy", "linear_log_probs"]


def cap_logits(logits: Tensor, by: Cap) -> Tensor:
    """Return the logits, capped between −limit and limit."""
    cap = by.limit
    if by.kind == "tanh":
        return cap * torch.tanh(logits / cap)
    return cap * logits * torch.rsqrt(logits.square() + cap * cap)


def cap_of(config: ModelConfig) -> Cap | None:
    """Return the cap of a model's logits."""
    return None if config.logit_cap is None else Cap(config.logit_cap, config.logit_cap_kind)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cap: Cap | None = None,
    *,
    compiled: bool = False,
) -> Tensor:
    """Return the sum over rows of the cross-entropy of softmax(hidden @ weightᵀ), in nats.

    `hidden` is (N, d_model), `weight` (vocab, d_model) and `targets` (N,). Rows with the target
    IGNORED add nothing. A `cap` is applied to the logits (`cap_logits`). The result is a scalar in
    fp32. The gradient of each chunk is computed in the forward pass, while its logits exist (as in
    Hsu et al. 2024, "Liger Kernel"). So only one chunk of logits exists at a time, and the backward
    pass recomputes nothing. Products use autocast's dtype if autocast is on. Softmax and all sums
    are fp32. `compiled` computes the gradients with kernels of torch.compile. The gradient of a
    weight that needs none, such as a frozen head, is not computed.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _Stored.apply(hidden, weight, targets, cap, (compiled, True))
    return _plain(_given(hidden, weight, targets, cap), summed=True)[0]


def linear_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cap: Cap | None = None,
    *,
    compiled: bool = False,
) -> Tensor:
    """Return the log-probability of each target in softmax(hidden @ weightᵀ), in nats.

    `hidden` is (N, d_model), `weight` (vocab, d_model) and `targets` (N,). The result (N,) is fp32,
    and 0 for the target IGNORED. A `cap` is applied to the logits (`cap_logits`). Never more than
    one chunk of logits exists. Products use autocast's dtype if autocast is on; softmax and all
    sums are fp32. `compiled` computes with kernels of torch.compile.

    A loss of sequences, such as that of preferences, weighs each token by what all tokens of both
    sequences are worth. So the forward pass does not know the gradient by the logits, and the
    backward pass computes the logits a second time. If `weight` needs no gradient, the forward pass
    stores the gradient by the hidden states, which the backward pass only scales.
    """
    if torch.is_grad_enabled() and weight.requires_grad:
        return _ComputedAgain.apply(hidden, weight, targets, cap, compiled)
    if torch.is_grad_enabled() and hidden.requires_grad:
        return _Stored.apply(hidden, weight, targets, cap, (compiled, False))
    return _log_probs(_given(hidden, weight, targets, cap), compiled=compiled)[0]


def _given(hidden: Tensor, weight: Tensor, targets: Tensor, cap: Cap | None) -> Given:
    return Given(hidden, weight, targets, cap, compute_dtype(hidden, weight))


class _Stored(torch.autograd.Function):
    """The forward pass computes the gradients, while the logits exist. The backward pass scales
    them. `how` is whether kernels are compiled, and whether the result is the loss."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        cap: Cap | None,
        how: tuple[bool, bool],
    ) -> Tensor:
        (compiled, summed), learned_head = how, ctx.needs_input_grad[1]
        given = _given(hidden, weight, targets, cap)
        ctx.dtypes, ctx.factors = (hidden.dtype, weight.dtype), None  # of the rows by `hidden`
        if compiled:
            equal = None if summed else torch.ones(len(hidden), device=hidden.device)
            result, *ctx.gradients = _compiled(given, equal, learned_head)
            return result
        ctx.gradients = _zeros(given, learned_head)
        result, _, totals = _plain(given, summed=summed, into=ctx.gradients)
        if not summed:
            ctx.factors = torch.where((targets != IGNORED)[:, None], -1 / totals, 0.0)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("backward scales the stored gradients in place: call it only once")
        # Dropping our references lets autograd keep these tensors as .grad without a copy.
        (grad_hidden, grad_weight), ctx.gradients = ctx.gradients, None
        hidden_dtype, weight_dtype = ctx.dtypes
        of_rows = grad[..., None] if ctx.factors is None else ctx.factors * grad[..., None]
        if hidden_dtype == torch.float32:
            grad_hidden.mul_(of_rows)
        else:  # rounded as it is written
            rounded = torch.empty_like(grad_hidden, dtype=hidden_dtype)
            grad_hidden = torch.mul(grad_hidden, of_rows, out=rounded)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(grad).to(weight_dtype)
        return grad_hidden, grad_weight, None, None, None


class _ComputedAgain(torch.autograd.Function):
    """The backward pass computes the logits again, and the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        cap: Cap | None,
        compiled: bool,
    ) -> Tensor:
        given = _given(hidden, weight, targets, cap)
        ctx.how = cap, given.dtype, compiled
        log_probs, *sums = _log_probs(given, compiled=compiled)
        ctx.save_for_backward(hidden, weight, targets, *sums)
        return log_probs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (hidden, weight, targets, *sums), (cap, dtype, compiled) = ctx.saved_tensors, ctx.how
        given = Given(hidden, weight, targets, cap, dtype)
        if compiled:
            _, grad_hidden, grad_weight = _compiled(given, grad, True)
        else:
            grad_hidden, grad_weight = _plain_again(given, sums, grad)
        assert grad_weight is not None
        return grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype), None, None, None


def _log_probs(given: Given, *, compiled: bool) -> tuple[Tensor, ...]:
    """Return the log-probabilities (N,), and what `_plain_again` wants to know. The compiled way
    adds up again, which costs nothing."""
    if not compiled:
        return _plain(given, summed=False)
    with torch.autocast(given.hidden.device.type, enabled=False):
        chunks = CompiledChunks(given)
        return (torch.cat([chunks.log_probs(part) for part in chunks.parts]),)


# What the plain way writes gradients into, in fp32: by `hidden`, and by `weight` if it is learned.
_Gradients = tuple[Tensor, Tensor | None]


def _zeros(given: Given, learned_head: bool) -> _Gradients:
    hidden = torch.zeros_like(given.hidden, dtype=torch.float32)
    return hidden, torch.zeros_like(given.weight, dtype=torch.float32) if learned_head else None


def _plain(
    given: Given, *, summed: bool, into: _Gradients | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss if `summed`, and else the log-probabilities (N,).

    Of each row, also return the largest logit (N, 1), and the sum of exponentials of logits minus
    the largest (N, 1). Their logsumexp would be one number instead of two, but rounded: in fp32,
    exp(500 − 500.00003) is not 1. The gradients of log-probabilities lack the factor −1 / sum.
    """
    rows, device = len(given.hidden), given.hidden.device
    result = torch.zeros(() if summed else rows, device=device)
    tops, totals = (torch.zeros(rows, 1, device=device) for _ in range(2))
    with torch.autocast(device.type, enabled=False):
        chunks = PlainChunks(given)
        for chunk in chunks:
            exp, total, of_target, top = softmax_in_place(chunk)
            tops[chunk.rows], totals[chunk.rows] = top, total
            values = (of_target - total.log()) * chunk.valid
            if summed:
                result -= values.sum()
            else:
                result[chunk.rows] = values[:, 0]
            if into is not None:
                factors = chunk.valid / total if summed else chunk.valid.float()
                chunks.add_gradients(chunk, (exp, total), factors, into)
    return result, tops, totals


def _plain_again(given: Given, sums: list[Tensor], grad: Tensor) -> _Gradients:
    """Return the gradients of log-probabilities that are weighted by `grad` (N,)."""
    (tops, totals), into = sums, _zeros(given, True)
    with torch.autocast(grad.device.type, enabled=False):
        chunks = PlainChunks(given)
        for chunk in chunks:
            exp, total = chunk.logits.sub_(tops[chunk.rows]).exp_(), totals[chunk.rows]
            factors = -grad[chunk.rows, None] * chunk.valid / total
            chunks.add_gradients(chunk, (exp, total), factors, into)
    return into


def _compiled(
    given: Given, weights: Tensor | None, learned_head: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the log-probabilities (N,), and the fp32 gradients of their sum weighted by `weights`
    (N,): by `hidden` (N, d_model), and by `weight`, if it is learned. Without `weights`, all this
    is of the loss."""
    with torch.autocast(given.hidden.device.type, enabled=False):
        parts = CompiledChunks(given).gradients(weights, learned_head=learned_head)
    result = torch.stack(parts[0]).sum() if weights is None else torch.cat(parts[0])
    return result, *parts[1:]
