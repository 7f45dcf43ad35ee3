"""Compute the logits of a large vocabulary, one chunk of rows at a time, for what is made of them.

There are two ways. `PlainChunks` works in place on one buffer of logits, and is the fast way on a
CPU. `CompiledChunks` leaves what lies between the matrix products to torch.compile: the products
write fp32 logits once, and one compiled kernel reads them once. It is the fast way on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

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


class Given(NamedTuple):
    """What a loss is computed of: `hidden` (N, d_model), `weight` (vocab, d_model), `targets` (N,).

    The logits are capped at `cap`, and products have `dtype`.
    """

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    cap: float | None
    dtype: torch.dtype


# ---------------------------------------------------------------- plain


class PlainChunk(NamedTuple):
    """Some rows, and their logits (n, vocab) in fp32, capped. The next chunk overwrites them.

    `rows` (n,) are the numbers of the rows, `states` (n, d_model) have the dtype of products, and
    `slope` is the derivative of the cap. `target` and `valid` are (n, 1); an IGNORED target is 0.
    """

    rows: Tensor
    states: Tensor
    logits: Tensor
    slope: Tensor | None
    target: Tensor
    valid: Tensor


class PlainChunks:
    """The rows that are computed of `given`, one chunk after another.

    On a CPU, rows without a target are left out. On a GPU, finding these rows would make us wait
    for the GPU. Autocast has to be off.
    """

    def __init__(self, given: Given) -> None:
        hidden, weight, targets, self._cap, dtype = given
        on_cpu, vocab = hidden.device.type == "cpu", len(weight)
        every = torch.arange(len(targets), device=targets.device)
        self._rows = learned = _learned_rows(targets) if on_cpu else every
        self.weight = weight.to(dtype)
        self._hidden, self._targets = hidden[learned].to(dtype), targets[learned]
        limit = CPU_CHUNK_BYTES if on_cpu else CUDA_CHUNK_BYTES
        self._chunk = rows_per_chunk(len(learned), vocab, limit)
        tile = CPU_TILE if on_cpu else vocab
        self._tiles = [slice(start, start + tile) for start in range(0, vocab, tile)]

    def __iter__(self) -> Iterator[PlainChunk]:
        buffer = torch.empty(self._chunk, len(self.weight), device=self.weight.device)
        for start in range(0, len(self._rows), self._chunk):
            part = slice(start, start + self._chunk)
            x, target = self._hidden[part], self._targets[part, None]
            logits = buffer[: len(x)]
            for columns in self._tiles:
                logits[:, columns] = x @ self.weight[columns].T
            slope = None if self._cap is None else _cap_in_place(logits, self._cap)
            valid = target != IGNORED
            yield PlainChunk(self._rows[part], x, logits, slope, target.clamp(min=0), valid)

    def add_gradients(
        self,
        chunk: PlainChunk,
        softmax: tuple[Tensor, Tensor],
        factors: Tensor,
        into: tuple[Tensor, Tensor | None],
    ) -> None:
        """Write the gradient of the rows' cross-entropies, each times its total and its factor
        (n, 1), into that by `hidden`, and add it to that by `weight`, if this is learned.

        `softmax` are the exponentials of the logits, and their totals (n, 1).
        """
        (exp, total), (grad_hidden, grad_weight) = softmax, into
        # The gradient by the logits is softmax − one-hot, and `exp` is softmax · total.
        grad_logits = exp.scatter_add_(1, chunk.target, -total)
        if chunk.slope is not None:
            grad_logits.mul_(chunk.slope)
        grad_logits = grad_logits.to(chunk.states.dtype)
        # The d_model side of both products has the factors, where they are cheap.
        grad_hidden[chunk.rows] = (grad_logits @ self.weight) * factors
        if grad_weight is not None:
            states = (chunk.states * factors).to(chunk.states.dtype)
            for columns in self._tiles:
                grad_weight[columns] += grad_logits[:, columns].T @ states


def softmax_in_place(chunk: PlainChunk) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Replace the logits by exponentials of them. Return these, and per row (n, 1): their sum, the
    target's logit, and the largest logit. The last two are of the logits as they were, the target's
    minus the largest."""
    top = chunk.logits.amax(dim=1, keepdim=True)
    of_target = chunk.logits.gather(1, chunk.target) - top
    exp = chunk.logits.sub_(top).exp_()
    return exp, exp.sum(dim=1, keepdim=True), of_target, top


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


class CompiledChunks:
    """All rows of `given`, cut into `parts` of one size if that is possible.

    The products write fp32 although they read bf16, so the logits are not rounded. Autocast has to
    be off.
    """

    def __init__(self, given: Given) -> None:
        hidden, weight, self._targets, self._cap, dtype = given
        rows, self._vocab = len(hidden), len(weight)
        columns = -(-self._vocab // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
        limit = CPU_CHUNK_BYTES if hidden.device.type == "cpu" else COMPILED_CHUNK_BYTES
        chunk = divisor_near(rows, rows_per_chunk(rows, columns, limit))
        self.states = hidden.to(dtype)
        whole = columns == self._vocab
        self._head = weight.to(dtype) if whole else _padded(weight, columns, dtype)
        self.parts = [slice(first, first + chunk) for first in range(0, rows, chunk)]

    def logits(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return the products of a part, (n, columns) in fp32; those of its targets, (n, 1); and
        the targets, (n, 1), 0 if IGNORED. The last columns are padding."""
        logits = product_in_fp32(self.states[part], self._head.T)
        # Reading and writing at the targets costs nothing here. In the compiled kernels, either
        # could become a pass through all logits.
        target = self._targets[part].clamp(min=0)[:, None]
        return logits, logits.gather(1, target), target

    def log_probs(self, part: slice) -> Tensor:
        """Return the log-probabilities of a part, (n,)."""
        logits, of_target, _ = self.logits(part)
        given = self._targets[part], self.states.dtype, self._vocab, self._cap
        return compiled(log_probs_of_logits)(logits, of_target, *given)

    def gradients(
        self, weights: Tensor | None, *, learned_head: bool
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor | None]:
        """Return the results of the parts, and the gradient of their sum, weighted by `weights`
        (N,).

        The results are log-probabilities (n,). Without `weights`, each is the cross-entropy of a
        part. The gradient by `hidden` is in two parts: factors of the rows (N, 1), and what they
        multiply, fp32 (N, d_model). Last, the fp32 gradient by the weight (vocab, d_model), if it
        is learned.
        """
        results, factors, kernel = [], [], compiled(gradient_of_logits)
        grad_hidden = torch.empty_like(self.states, dtype=torch.float32)
        grad_weight: Tensor | None = None
        for part in self.parts:
            logits, of_target, target = self.logits(part)
            of_rows = self._targets[part], None if weights is None else weights[part]
            result, grad_logits, own, factor, states = kernel(
                logits, of_target, self.states[part], of_rows, self._vocab, self._cap
            )
            grad_logits.scatter_(1, target, own)
            results.append(result)
            factors.append(factor)
            del logits
            product_in_fp32(grad_logits, self._head, into=grad_hidden[part])
            if learned_head:
                grad_weight = product_in_fp32(grad_logits.T, states, added=grad_weight)
            del states
        grad_weight = None if grad_weight is None else grad_weight[: self._vocab]
        return results, torch.cat(factors), grad_hidden, grad_weight


@lru_cache
def compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Return a kernel by torch.compile.

    Each shape has kernels for itself. With kernels for all shapes, the kernels of a resumed run
    could differ from those of the unbroken run, which met the shapes in another order.
    """
    return torch.compile(kernel, dynamic=False, fullgraph=True)


def log_probs_of_logits(
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


def gradient_of_logits(
    logits: Tensor,
    of_target: Tensor,
    states: Tensor,
    of_rows: tuple[Tensor, Tensor | None],
    vocab: int,
    cap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the log-probabilities (N,) of products (N, columns), and what gradients are made of.

    `of_target` (N, 1) are the targets' products. `of_rows` are the targets (N,), and what the
    gradient of each row is multiplied by (N,). If this is None, the first result is the
    cross-entropy, summed.

    The gradient by the products is without a factor of each row, as if no row had a target; then
    what it is at the targets, (N, 1); the factors, (N, 1) in fp32; and `states` (N, d_model) times
    the factors. The others have the dtype of `states`. This is the gradient of the cross-entropy;
    that of log-probabilities has its sign in the factors.
    """
    (targets, weights), dtype = of_rows, states.dtype
    losses, gradient, own, total = relative_softmax(logits, of_target, dtype, vocab, cap)
    valid = targets != IGNORED
    if weights is None:
        result, factors = (losses * valid[:, None]).sum(), valid[:, None] / total
    else:
        result, factors = -(losses[:, 0] * valid), -(weights * valid)[:, None] / total
    return result, gradient, own, factors, (states * factors).to(dtype)


def relative_softmax(
    logits: Tensor, of_target: Tensor, dtype: torch.dtype, vocab: int, cap: float | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the loss of each row of products (N, columns), (N, 1), and what gradients are made of.

    `of_target` (N, 1) are the targets' products.

    This is the gradient by the products, each row times its total, as if no row had a target; what
    the gradient is at the targets, (N, 1); and what to divide by, the totals, (N, 1) in fp32. The
    gradients have `dtype`.

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
    losses = total.log() + LOWERED_BY
    own = (math.exp(-LOWERED_BY) - total) * slope_of_target
    if dtype == torch.bfloat16:
        # A row's gradient is largest at its target. What rounding takes from it there, the factor
        # of the row gives back. Without this, gradients are up to 1.7 times as far from fp32.
        held = _as_bfloat16_holds(own)
        own, total = held, torch.where(held == 0, total, total * (held / own))
    return losses, (exp * slope).to(dtype), own.to(dtype), total


def _as_bfloat16_holds(x: Tensor) -> Tensor:
    """Return fp32 numbers rounded to those that bf16 has.

    By their bits, because a compiler leaves out a cast to bf16 and back.
    """
    return ((x.view(torch.int32) + 0x8000) & -0x10000).view(torch.float32)


def _capped_with_slope(logits: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """Return the capped logits z, and the derivative of the cap, (cap² / (z² + cap²))^1.5."""
    inverse = cap * torch.rsqrt(logits.square() + cap * cap)
    return logits * inverse, inverse * inverse * inverse


def _padded(weight: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Return the weight (vocab, d_model) in `dtype`, with rows of zeros at its end."""
    padded = weight.new_empty((rows, weight.shape[1]), dtype=dtype)
    padded[: len(weight)].copy_(weight)
    padded[len(weight) :].zero_()
    return padded


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


# ---------------------------------------------------------------- sizes


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
