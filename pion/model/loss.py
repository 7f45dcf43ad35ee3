"""Compute the cross-entropy over a large vocabulary, one chunk of logits at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pion.model.norm import compute_dtype

# The target of a position without a loss.
IGNORED = -100

# The size of one chunk of fp32 logits. Larger chunks use the matrix units better: a few hundred
# rows are enough on a CPU, but a GPU needs thousands.
CPU_CHUNK_BYTES = 56 * 2**20
CUDA_CHUNK_BYTES = 512 * 2**20

# Vocabulary columns per matrix product on a CPU. With this few columns, the data to cast or to add
# to the weight's gradient is still in the CPU's cache; in bf16 the gradient takes half as long.
CPU_TILE = 4096

# On a CPU the number of computed rows is rounded up to a multiple of this. oneDNN compiles and
# keeps code for every shape. Conversations have many lengths, so without rounding memory would grow
# for hours.
ROW_MULTIPLE = 256


def cap_logits(logits: Tensor, cap: float) -> Tensor:
    """Return cap · z / sqrt(z² + cap²), between −cap and cap (the logit cap of Daisy-Wee)."""
    return cap * logits * torch.rsqrt(logits.square() + cap * cap)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None = None
) -> Tensor:
    """Return the sum over rows of the cross-entropy of softmax(hidden @ weightᵀ), in nats.

    `hidden` is (N, d_model), `weight` (vocab, d_model) and `targets` (N,). Rows with the target
    IGNORED add nothing. A `cap` is applied to the logits (`cap_logits`). The result is a scalar in
    fp32. The gradient of each chunk is computed in the forward pass, while its logits exist (as in
    Hsu et al. 2024, "Liger Kernel"). So only one chunk of logits exists at a time, and the backward
    pass recomputes nothing. Products use autocast's dtype if autocast is on. Softmax and all sums
    are fp32.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, targets, cap)
    loss, _, _ = _chunked(hidden, weight, targets, cap, with_gradients=False)
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None
    ) -> Tensor:
        loss, *ctx.gradients = _chunked(hidden, weight, targets, cap, with_gradients=True)
        ctx.dtypes = hidden.dtype, weight.dtype
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("backward scales the loss's gradients in place: call it only once")
        # Dropping our references lets autograd keep these tensors as .grad without a copy.
        (grad_hidden, grad_weight), ctx.gradients = ctx.gradients, None
        hidden_dtype, weight_dtype = ctx.dtypes
        return (
            grad_hidden.mul_(grad_loss).to(hidden_dtype),
            grad_weight.mul_(grad_loss).to(weight_dtype),
            None,
            None,
        )


def _chunked(
    hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None, *, with_gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the summed loss and, if wanted, its fp32 gradients by `hidden` and by `weight`."""
    dtype = compute_dtype(hidden, weight)
    vocab = weight.shape[0]
    on_cpu = hidden.device.type == "cpu"
    loss = torch.zeros((), device=hidden.device)
    grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if with_gradients else None
    grad_weight = torch.zeros_like(weight, dtype=torch.float32) if with_gradients else None
    # On a CPU, rows without a target are left out. On a GPU, finding these rows would make us wait
    # for the GPU.
    learned = torch.arange(len(targets), device=targets.device)
    if on_cpu:
        learned = _learned_rows(targets)

    with torch.autocast(hidden.device.type, enabled=False):
        hidden, weight, targets = hidden[learned].to(dtype), weight.to(dtype), targets[learned]
        chunk = _rows_per_chunk(len(hidden), vocab, CPU_CHUNK_BYTES if on_cpu else CUDA_CHUNK_BYTES)
        tile = CPU_TILE if on_cpu else vocab
        tiles = [slice(start, start + tile) for start in range(0, vocab, tile)]
        buffer = torch.empty(chunk, vocab, device=hidden.device)
        for rows in (slice(start, start + chunk) for start in range(0, len(hidden), chunk)):
            x, target = hidden[rows], targets[rows, None]
            logits = buffer[: len(x)]
            for columns in tiles:
                logits[:, columns] = x @ weight[columns].T
            slope = None if cap is None else _cap_in_place(logits, cap)
            valid = target != IGNORED
            target = target.clamp(min=0)
            top = logits.amax(dim=1, keepdim=True)
            target_logit = logits.gather(1, target) - top
            exp = logits.sub_(top).exp_()
            total = exp.sum(dim=1, keepdim=True)
            loss += ((total.log() - target_logit) * valid).sum()
            if grad_hidden is None or grad_weight is None:
                continue
            # The gradient of the logits is softmax − one-hot. Here each row is multiplied by its
            # `total`. The d_model side of both products divides by `total`, where this is cheap.
            grad_logits = exp.scatter_add_(1, target, -total)
            if slope is not None:
                grad_logits.mul_(slope)
            grad_logits = grad_logits.to(dtype)
            scale = valid / total
            grad_hidden[learned[rows]] = (grad_logits @ weight) * scale
            scaled = (x * scale).to(dtype)
            for columns in tiles:
                grad_weight[columns] += grad_logits[:, columns].T @ scaled
    return loss, grad_hidden, grad_weight


def _cap_in_place(logits: Tensor, cap: float) -> Tensor:
    """Cap the logits z; return the derivative (cap² / (z² + cap²))^1.5."""
    inverse = torch.rsqrt(logits.square().add_(cap * cap)).mul_(cap)
    logits.mul_(inverse)
    return inverse.pow_(3)


def _learned_rows(targets: Tensor) -> Tensor:
    """Return the indices of rows with a target, plus other rows up to a ROW_MULTIPLE."""
    has_target = targets != IGNORED
    learned, others = has_target.nonzero().flatten(), (~has_target).nonzero().flatten()
    return torch.cat([learned, others[: -len(learned) % ROW_MULTIPLE]])


def _rows_per_chunk(rows: int, vocab: int, limit: int) -> int:
    """Return the rows per chunk, so that even chunks of fp32 logits fit into `limit` bytes."""
    chunks = -(-rows * vocab * 4 // limit)
    return max(1, -(-rows // max(1, chunks)))
