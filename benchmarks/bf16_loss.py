"""A candidate for the compiled loss: bf16 logits, and a softmax that looks for the largest first.

pion/model/loss.py has the loss of today: fp32 logits, each read once, relative to the target's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pion.model.chunks_of_logits import compiled as compiled_kernel


def loss_by_bf16(h: Tensor, w: Tensor, targets: Tensor, chunk: int, compiled: bool) -> Tensor:
    """Return the summed cross-entropy by bf16 logits, with its gradients as `Bf16Loss` has them."""
    return Bf16Loss.apply(h, w, targets, chunk, compiled)


class Bf16Loss(torch.autograd.Function):
    """The forward pass stores the gradients, as pion/model/loss.py does."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, compiled: bool
    ) -> Tensor:
        kernel = compiled_kernel(softmax_gradient) if compiled else softmax_gradient
        ctx.by_hidden = torch.empty_like(hidden)
        ctx.by_weight = torch.zeros_like(weight, dtype=torch.float32)
        total = torch.zeros((), device=hidden.device)
        for first in range(0, len(hidden), chunk):
            part = slice(first, first + chunk)
            value, gradient = kernel(hidden[part] @ weight.T, targets[part])
            total += value
            torch.mm(gradient, weight, out=ctx.by_hidden[part])
            ctx.by_weight += gradient.T @ hidden[part]
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.by_hidden * grad, (ctx.by_weight * grad).bfloat16(), None, None, None


def softmax_gradient(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed loss of bf16 logits (N, vocab), and its gradient by them."""
    own = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    log_probs = logits.float().log_softmax(dim=1)
    return -torch.where(own, log_probs, 0.0).sum(), (log_probs.exp() - own.float()).to(logits.dtype)
