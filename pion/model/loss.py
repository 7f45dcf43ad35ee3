"""Compute the cross-entropy over a large vocabulary, one chunk of logits at a time.

There are two ways, with the same result up to rounding. `_plain` works in place on one buffer of
logits; this is the reference, and the fast way on a CPU. `_compiled` leaves what lies between the
matrix products to torch.compile: the products write fp32 logits once, and one compiled kernel reads
them once, for the sums and for the gradient. It is the fast way on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pion.model.norm_and_projection import compute_dtype

# The gradients that a loss computes: none, of the hidden states, or of the head too.
Gradients = Literal["none", "of states", "both"]

# The target of a position without a loss.
IGNORED = -100

# The size of one chunk of fp32 logits. Larger chunks use the matrix units better: a few hundred
# rows are enough on a CPU, but a GPU needs thousands.
CPU_CHUNK_BYTES = 56 * 2**20
CUDA_CHUNK_BYTES = 512 * 2**20
# Compiled, a chunk has fewer copies, so it may be larger. Fewer chunks start fewer kernels.
COMPILED_CHUNK_BYTES = 2**30

# Vocabulary columns per matrix product on a CPU. With this few columns, the data to cast or to add
# to the weight's gradient is still in the CPU's cache; in bf16 the gradient takes half as long.
CPU_TILE = 4096

# Compiled, exponentials are of a logit minus the target's, lowered by this. A logit counts as at
# most MOST_ABOVE above the target's: the loss of a token, in nats, is right up to there, and a
# larger loss counts as about this much. Sums over all columns then fit into fp32 and bf16.
LOWERED_BY, MOST_ABOVE = 30.0, 100.0

# On a CPU the number of computed rows is rounded up to a multiple of this. oneDNN compiles and
# keeps code for every shape. Conversations have many lengths, so without rounding memory would grow
# for hours.
ROW_MULTIPLE = 256

# Compiled, the products have a multiple of this many columns. The rows of the logits and of their
# gradient are then aligned as the fast kernels of cuBLAS need them. Checkpoints keep the weight's
# own number of rows.
COLUMN_MULTIPLE = 64


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
    vocab = weight.shape[0]
    on_cpu = hidden.device.type == "cpu"
    loss = torch.zeros((), device=hidden.device)
    grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if wanted != "none" else None
    grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted == "both" else None
    # On a CPU, rows without a target are left out. On a GPU, finding these rows would make us wait
    # for the GPU.
    every = torch.arange(len(targets), device=targets.device)
    learned = _learned_rows(targets) if on_cpu else every

    with torch.autocast(hidden.device.type, enabled=False):
        hidden, weight, targets = hidden[learned].to(dtype), weight.to(dtype), targets[learned]
        chunk = rows_per_chunk(len(hidden), vocab, CPU_CHUNK_BYTES if on_cpu else CUDA_CHUNK_BYTES)
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
            if grad_hidden is None:
                continue
            # The gradient of the logits is softmax − one-hot. Here each row is multiplied by its
            # `total`. The d_model side of both products divides by `total`, where this is cheap.
            grad_logits = exp.scatter_add_(1, target, -total)
            if slope is not None:
                grad_logits.mul_(slope)
            grad_logits = grad_logits.to(dtype)
            scale = valid / total
            grad_hidden[learned[rows]] = (grad_logits @ weight) * scale
            if grad_weight is not None:
                states = (x * scale).to(dtype)
                for columns in tiles:
                    grad_weight[columns] += grad_logits[:, columns].T @ states
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


# ---------------------------------------------------------------- compiled


def _compiled(
    hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None, learned_head: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the summed loss, and its fp32 gradient by `hidden` in two parts: factors of the rows,
    (N, 1), and what they multiply. Last, the fp32 gradient by `weight`, if it is learned.

    The products write fp32 although they read bf16, so the logits are not rounded.
    """
    dtype = compute_dtype(hidden, weight)
    rows, vocab = len(hidden), len(weight)
    columns = -(-vocab // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
    limit = CPU_CHUNK_BYTES if hidden.device.type == "cpu" else COMPILED_CHUNK_BYTES
    chunk = divisor_near(rows, rows_per_chunk(rows, columns, limit))
    gradient_of_logits = _compiled_gradient_of_logits()
    losses, factors = [], []
    grad_hidden = torch.empty_like(hidden, dtype=torch.float32)
    grad_weight: Tensor | None = None
    with torch.autocast(hidden.device.type, enabled=False):
        x = hidden.to(dtype)
        head = weight.to(dtype) if columns == vocab else _padded(weight, columns, dtype)
        for first in range(0, rows, chunk):
            part = slice(first, first + chunk)
            logits = product_in_fp32(x[part], head.T)
            # Reading and writing at the targets costs nothing here. In the compiled kernels, either
            # could become a pass through all logits.
            target = targets[part].clamp(min=0)[:, None]
            of_target = logits.gather(1, target)
            chunk_loss, grad_logits, own, factor, states = gradient_of_logits(
                logits, of_target, x[part], targets[part], vocab, cap
            )
            grad_logits.scatter_(1, target, own)
            losses.append(chunk_loss)
            factors.append(factor)
            del logits
            product_in_fp32(grad_logits, head, into=grad_hidden[part])
            if learned_head:
                grad_weight = product_in_fp32(grad_logits.T, states, added=grad_weight)
            del states
    grad_weight = None if grad_weight is None else grad_weight[:vocab]
    return torch.stack(losses).sum(), torch.cat(factors), grad_hidden, grad_weight


def _padded(weight: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Return the weight (vocab, d_model) in `dtype`, with rows of zeros at its end."""
    padded = weight.new_empty((rows, weight.shape[1]), dtype=dtype)
    padded[: len(weight)].copy_(weight)
    padded[len(weight) :].zero_()
    return padded


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

    A softmax needs the largest logit of a row before it can add up. Here the target's logit is in
    its place, which is known before, so each logit is read once.

    The columns from `vocab` on are padding. Their gradient is 0.
    """
    column = torch.arange(logits.shape[1], device=logits.device)
    slope = slope_of_target = torch.ones((), device=logits.device)
    if cap is not None:
        logits, slope = _capped_with_slope(logits, cap)
        of_target, slope_of_target = _capped_with_slope(of_target, cap)
    above = logits - of_target
    # An infinite logit is a mistake, and has to be seen in the loss.
    above = torch.where(above < float("inf"), above.clamp(max=MOST_ABOVE), float("nan"))
    exp = torch.where(column < vocab, (above - LOWERED_BY).exp(), 0.0)
    total = exp.sum(dim=1, keepdim=True)
    valid = (targets != IGNORED)[:, None]
    loss = ((total.log() + LOWERED_BY) * valid).sum()
    own = (math.exp(-LOWERED_BY) - total) * slope_of_target
    gradient, factors, dtype = exp * slope, valid / total, states.dtype
    return loss, gradient.to(dtype), own.to(dtype), factors, (states * factors).to(dtype)


def _capped_with_slope(logits: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Return the capped logits z, and the derivative of the cap, (cap² / (z² + cap²))^1.5."""
    inverse = cap * torch.rsqrt(logits.square() + cap * cap)
    return logits * inverse, inverse * inverse * inverse


def product_in_fp32(
    a: Tensor, b: Tensor, *, added: Tensor | None = None, into: Tensor | None = None
) -> Tensor:
    """Return a @ b in fp32, plus `added` (fp32) if given, or written `into` a tensor."""
    if a.dtype == torch.bfloat16 and a.device.type == "cpu":
        # A CPU has no products of bf16 that write fp32.
        a, b = a.float(), b.float()
    if a.dtype == torch.float32:
        return torch.mm(a, b, out=into) if added is None else torch.addmm(added, a, b)
    if added is None:
        return torch.mm(a, b, out_dtype=torch.float32, out=into)
    return torch.addmm(added, a, b, out_dtype=torch.float32)


# ---------------------------------------------------------------- chunks


def rows_per_chunk(rows: int, vocab: int, limit: int) -> int:
    """Return the rows per chunk, so that even chunks of fp32 logits fit into `limit` bytes."""
    chunks = -(-rows * vocab * 4 // limit)
    return max(1, -(-rows // max(1, chunks)))


def divisor_near(rows: int, most: int) -> int:
    """Return a divisor of `rows` from most / 2 to `most`, or `most` if there is none.

    Chunks of one size need one compilation.
    """
    fewest = -(-rows // most)
    possible = range(fewest, 2 * fewest + 1)
    return next((rows // chunks for chunks in possible if rows % chunks == 0), most)
