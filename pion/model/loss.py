"""Compute the cross-entropy over a large vocabulary, one chunk of logits at a time.

There are two ways, with the same result up to rounding. `_plain` works in place on one buffer of
logits; this is the reference, and the fast way on a CPU. `_compiled` leaves what lies between the
matrix products to torch.compile, and is the fast way on a GPU. See chunks_of_logits.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

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

__all__ = ["IGNORED", "cap_logits", "linear_cross_entropy"]

# The gradients that a loss computes: none, of the hidden states, or of the head too.
Gradients = Literal["none", "of states", "both"]


def cap_logits(logits: Tensor, cap: float) -> Tensor:
    """Return cap · z / sqrt(z² + cap²), between −cap and cap (the logit cap of Daisy-Wee)."""
    return cap * logits * torch.rsqrt(logits.square() + cap * cap)


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    cap: float | None = None,
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
        return _LinearCrossEntropy.apply(hidden, weight, targets, cap, compiled)
    loss, _, _ = _plain(hidden, weight, targets, cap, wanted="none")
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        cap: float | None,
        compiled: bool,
    ) -> Tensor:
        learned_head = ctx.needs_input_grad[1]
        ctx.factors = None  # of each row of the gradient of the hidden states
        if compiled:
            result = _compiled(hidden, weight, targets, cap, learned_head)
            loss, ctx.factors, *ctx.gradients = result
        else:
            wanted: Gradients = "both" if learned_head else "of states"
            loss, *ctx.gradients = _plain(hidden, weight, targets, cap, wanted=wanted)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("backward scales the loss's gradients in place: call it only once")
        # Dropping our references lets autograd keep these tensors as .grad without a copy.
        (grad_hidden, grad_weight), ctx.gradients = ctx.gradients, None
        hidden_dtype, weight_dtype = ctx.dtypes
        of_rows = grad_loss if ctx.factors is None else ctx.factors * grad_loss
        if hidden_dtype == torch.float32:
            grad_hidden.mul_(of_rows)
        else:  # rounded as it is written
            rounded = torch.empty_like(grad_hidden, dtype=hidden_dtype)
            grad_hidden = torch.mul(grad_hidden, of_rows, out=rounded)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.mul_(grad_loss).to(weight_dtype),
            None,
            None,
            None,
        )


# ---------------------------------------------------------------- plain


def _plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None, *, wanted: Gradients
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the summed loss and, if wanted, its fp32 gradients by `hidden` and by `weight`."""
    dtype = compute_dtype(hidden, weight)
    loss = torch.zeros((), device=hidden.device)
    grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if wanted != "none" else None
    grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted == "both" else None
    with torch.autocast(hidden.device.type, enabled=False):
        chunks = PlainChunks(hidden, weight, targets, cap, dtype)
        for part in chunks.parts:
            chunk = chunks.chunk(part)
            exp, total, of_target, _ = softmax_in_place(chunk)
            loss += ((total.log() - of_target) * chunk.valid).sum()
            if grad_hidden is None:
                continue
            # The d_model side of both products divides by `total`, where this is cheap.
            grad_logits = gradient_in_place(chunk, exp, total)
            scale = chunk.valid / total
            grad_hidden[chunk.rows] = (grad_logits @ chunks.weight) * scale
            if grad_weight is not None:
                chunks.add_by_weight(grad_weight, grad_logits, (chunk.states * scale).to(dtype))
    return loss, grad_hidden, grad_weight


# ---------------------------------------------------------------- compiled


def _compiled(
    hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None, learned_head: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the summed loss, and its fp32 gradient by `hidden` in two parts: factors of the rows,
    (N, 1), and what they multiply. Last, the fp32 gradient by `weight`, if it is learned.
    """
    gradient_of_logits, dtype = _compiled_gradient_of_logits(), compute_dtype(hidden, weight)
    with torch.autocast(hidden.device.type, enabled=False):
        chunks = CompiledChunks(hidden, weight, dtype)

        def kernel(part: slice, logits: Tensor, of_target: Tensor) -> tuple[Tensor, ...]:
            states = chunks.states[part]
            return gradient_of_logits(logits, of_target, states, targets[part], len(weight), cap)

        gradients = chunks.gradients(targets, kernel, learned_head=learned_head)
    return torch.stack(gradients[0]).sum(), *gradients[1:]


@lru_cache(maxsize=1)
def _compiled_gradient_of_logits() -> Callable[..., tuple[Tensor, ...]]:
    # Each shape has kernels for itself. With kernels for all shapes, the kernels of a resumed run
    # could differ from those of the unbroken run, which met the shapes in another order.
    return torch.compile(_gradient_of_logits, dynamic=False, fullgraph=True)


def _gradient_of_logits(
    logits: Tensor,
    of_target: Tensor,
    states: Tensor,
    targets: Tensor,
    vocab: int,
    cap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the loss of logits (N, columns), summed, and what the gradients are made of.

    `of_target` (N, 1) are the targets' logits.

    This is the gradient by the logits, without a factor of each row, as if no row had a target;
    what the gradient is at the targets, (N, 1); the factors, (N, 1) in fp32; and `states` (N,
    d_model) times the factors. The others have the dtype of `states`. As in `_plain`, the d_model
    side of both products has the factors, where they are cheap.
    """
    dtype = states.dtype
    losses, gradient, own, total = relative_softmax(logits, of_target, dtype, vocab, cap)
    valid = (targets != IGNORED)[:, None]
    factors = valid / total
    return (losses * valid).sum(), gradient, own, factors, (states * factors).to(dtype)
