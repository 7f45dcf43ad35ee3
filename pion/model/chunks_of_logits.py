"""Compute the logits of a large vocabulary, one chunk of rows at a time, for what is made of them.

There are two ways. `PlainChunks` works in place on one buffer of logits, and is the fast way on a
CPU. `CompiledChunks` leaves what lies between the matrix products to torch.compile, and is the fast
way on a GPU. In both, logits have the dtype of products, and softmax and sums are fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

# The target of a position without a loss.
IGNORED = -100

# The size of one chunk of logits, which the plain way keeps in fp32. Larger chunks use the matrix
# units better: a few hundred rows are enough on a CPU, but a GPU needs thousands.
CPU_CHUNK_BYTES = 56 * 2**20
CUDA_CHUNK_BYTES = 512 * 2**20
# Compiled, a chunk has fewer copies, so it may be larger. Fewer chunks start fewer kernels.
COMPILED_CHUNK_BYTES = 2**30

# Vocabulary columns per matrix product on a CPU. With this few columns, the data to cast or to add
# to the weight's gradient is still in the CPU's cache; in bf16 the gradient takes half as long.
CPU_TILE = 4096

# On a CPU the number of computed rows is rounded up to a multiple of this. oneDNN compiles and
# keeps code for every shape. Conversations have many lengths, so without rounding memory would grow
# for hours.
ROW_MULTIPLE = 256

# Compiled, the products have a multiple of this many columns. The rows of the logits and of their
# gradient are then aligned as the fast kernels of cuBLAS need them. Checkpoints keep the weight's
# own number of rows.
COLUMN_MULTIPLE = 64


class Cap(NamedTuple):
    """Logits z become limit · z / sqrt(z² + limit²), as in Daisy-Wee, or limit · tanh(z / limit),
    as in Gemma 2."""

    limit: float
    kind: Literal["root", "tanh"] = "root"


class Given(NamedTuple):
    """What a loss is computed of: `hidden` (N, d_model), `weight` (vocab, d_model), `targets` (N,).

    The logits are capped by `cap`, and products have `dtype`.
    """

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    cap: Cap | None
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


def _cap_in_place(logits: Tensor, by: Cap) -> Tensor:
    """Cap the logits z; return the derivative, (cap² / (z² + cap²))^1.5 or 1 − tanh²(z / cap)."""
    cap = by.limit
    if by.kind == "tanh":
        slope = logits.div_(cap).tanh_().square().neg_().add_(1)
        logits.mul_(cap)
        return slope
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
    """All rows of `given`, cut into `parts` of one size if that is possible. Autocast has to be
    off."""

    def __init__(self, given: Given) -> None:
        hidden, weight, self._targets, self._cap, dtype = given
        rows, self._vocab = len(hidden), len(weight)
        columns = -(-self._vocab // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
        limit = CPU_CHUNK_BYTES if hidden.device.type == "cpu" else COMPILED_CHUNK_BYTES
        chunk = divisor_near(rows, rows_per_chunk(rows, columns, limit, dtype))
        self.states = hidden.to(dtype)
        self._head = weight.to(dtype) if columns == self._vocab else _padded(weight, columns, dtype)
        self.parts = [slice(first, first + chunk) for first in range(0, rows, chunk)]

    def log_probs(self, part: slice) -> Tensor:
        """Return the log-probabilities of a part, (n,)."""
        logits = self.states[part] @ self._head.T
        return compiled(log_probs_of_logits)(logits, self._targets[part], self._vocab, self._cap)

    def gradients(
        self, weights: Tensor | None, *, learned_head: bool
    ) -> tuple[list[Tensor], Tensor, Tensor | None]:
        """Return the results of the parts, and the gradient of their sum, weighted by `weights`
        (N,).

        The results are log-probabilities (n,). Without `weights`, each is the cross-entropy of a
        part. The gradients are fp32, by `hidden` (N, d_model), and by the weight (vocab, d_model)
        if it is learned.
        """
        results, kernel = [], compiled(gradient_of_logits)
        grad_hidden = torch.empty_like(self.states, dtype=torch.float32)
        grad_weight: Tensor | None = None
        for part in self.parts:
            result, grad_logits = kernel(
                self.states[part] @ self._head.T,
                self._targets[part],
                None if weights is None else weights[part],
                self._vocab,
                self._cap,
            )
            results.append(result)
            product_in_fp32(grad_logits, self._head, into=grad_hidden[part])
            if learned_head:
                grad_weight = product_in_fp32(grad_logits.T, self.states[part], added=grad_weight)
            del grad_logits
        grad_weight = None if grad_weight is None else grad_weight[: self._vocab]
        return results, grad_hidden, grad_weight


@lru_cache
def compiled(function: Callable[..., Any], *, any_shape: bool = False) -> Callable[..., Any]:
    """Return a function by torch.compile.

    In training, each shape has kernels for itself. With kernels for `any_shape`, the kernels of a
    resumed run could differ from those of the unbroken run, which met the shapes in another order.
    """
    return torch.compile(function, dynamic=any_shape, fullgraph=True)


def log_probs_of_logits(logits: Tensor, targets: Tensor, vocab: int, cap: Cap | None) -> Tensor:
    """Return the log-probabilities (N,) of logits (N, columns); columns from `vocab` on are
    padding."""
    return _softmax(logits, targets, vocab, cap)[0]


def gradient_of_logits(
    logits: Tensor, targets: Tensor, weights: Tensor | None, vocab: int, cap: Cap | None
) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities (N,) of logits (N, columns), and the gradient of their sum, each
    times its weight (N,), by the logits before the cap. Without `weights`, return the summed
    cross-entropy, and its gradient."""
    log_probs, softmax, is_target, slope = _softmax(logits, targets, vocab, cap)
    valid = (targets != IGNORED).float()
    result, factors = (
        (-log_probs.sum(), valid) if weights is None else (log_probs, -weights * valid)
    )
    return result, ((softmax - is_target.float()) * (slope * factors[:, None])).to(logits.dtype)


def _softmax(
    logits: Tensor, targets: Tensor, vocab: int, cap: Cap | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | float]:
    """Return the log-probabilities (N,), 0 for IGNORED; the softmax and the places of the targets,
    (N, columns); and the derivative of the cap."""
    column = torch.arange(logits.shape[1], device=logits.device)
    is_target = column == targets[:, None]
    capped, slope = (
        (logits.float(), 1.0) if cap is None else _capped_with_slope(logits.float(), cap)
    )
    every = torch.where(column < vocab, capped, -torch.inf).log_softmax(dim=1)
    return torch.where(is_target, every, 0.0).sum(dim=1), every.exp(), is_target, slope


def _capped_with_slope(logits: Tensor, by: Cap) -> tuple[Tensor, Tensor]:
    """Return the capped logits, and the derivative that `_cap_in_place` returns."""
    cap = by.limit
    if by.kind == "tanh":
        share = torch.tanh(logits / cap)
        return cap * share, 1 - share * share
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


def rows_per_chunk(rows: int, vocab: int, limit: int, dtype: torch.dtype = torch.float32) -> int:
    """Return the rows per chunk, so that even chunks of logits fit into `limit` bytes."""
    chunks = -(-rows * vocab * dtype.itemsize // limit)
    return max(1, -(-rows // max(1, chunks)))


def divisor_near(rows: int, most: int) -> int:
    """Return a divisor of `rows` from most / 2 to `most`, or `most` if there is none.

    Chunks of one size need one compilation.
    """
    fewest = -(-rows // most)
    possible = range(fewest, 2 * fewest + 1)
    return next((rows // chunks for chunks in possible if rows % chunks == 0), most)
