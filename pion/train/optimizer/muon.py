"""Muon: momentum with an orthogonalized update, for the matrices inside the blocks.

    m ← βm + (1−β)g,  u = NS(βm + (1−β)g),  p ← p(1 − lr·wd) − lr·√max(1, rows/cols)·u

NS moves every singular value of its argument toward 1 (Jordan et al. 2024, "Muon: An optimizer for
hidden layers in neural networks").
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pion.model.saved_weights import Layout
from pion.train.optimizer.rule import Rule

# The coefficients (a, b, c) of each iteration x ← ax + b(xxᵀ)x + c(xxᵀ)²x, from the Daisy seed.
NEWTON_SCHULZ = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)

# Matrices of one shape go through NS as one batch of at most this many elements. Small matrices
# then fill the hardware, and large ones do not double the optimizer's memory.
BATCH_ELEMENTS = 2**26


def orthogonalize(matrices: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices by five quintic Newton–Schulz iterations.

    `matrices` is (n, rows, cols), and so is the result. The iterations and the result have `dtype`.
    """
    x = (matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT.contiguous()
    for a, b, c in NEWTON_SCHULZ:
        gram = torch.bmm(x, x.mT)
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if tall else x


def newton_schulz_flops(rows: int, cols: int) -> int:
    """Return the FLOPs of the products in `orthogonalize`, for one matrix."""
    small, large = sorted((rows, cols))
    return len(NEWTON_SCHULZ) * 2 * (2 * small**2 * large + small**3)


def apply_update(
    matrices: list[Tensor],
    updates: list[Tensor],
    lr: float,
    weight_decay: float,
    shape: tuple[int, int] | None = None,
) -> None:
    """Decay matrices of one shape, and change them by their orthogonalized updates in fp32.

    `shape` is that of the whole matrices, if these are rows of them.
    """
    rows, cols = shape or matrices[0].shape
    torch._foreach_mul_(matrices, 1 - lr * weight_decay)
    torch._foreach_add_(matrices, updates, alpha=-lr * math.sqrt(max(1.0, rows / cols)))


def step_bytes(shapes: Iterable[torch.Size], width: int) -> int:
    """Return the most bytes at once of a step over parameters of these shapes, besides its state.

    `width` is the bytes of an element in the iterations. There are the gradients of a batch in
    fp32, what orthogonalizing them needs (see `orthogonalize_bytes`), and the last batch's update.
    """
    most = before = 0
    for shape, count in Counter(shapes).items():
        while count:
            size = min(count, _batch_size(shape))
            elements = size * shape.numel()
            rows, cols = shape[-2:]
            matrices = elements // (rows * cols)
            needed = 4 * elements + orthogonalize_bytes((rows, cols), matrices, width)
            most = max(most, before + needed)
            before = 4 * elements
            count -= size
    return most


def orthogonalize_bytes(shape: tuple[int, int], count: int, width: int) -> int:
    """Return the most bytes at once in `orthogonalize` of so many matrices, and in the cast of its
    result to fp32.

    First the quotient in fp32 and its cast. Then the matrices before and after a product, and one
    Gram matrix; or the matrices and two Gram matrices. At last the result and its cast to fp32.
    """
    rows, cols = shape
    elements, gram = count * rows * cols, width * count * min(shape) ** 2
    cast = 0 if width == 4 else width * elements
    return max(
        4 * elements + cast,  # the quotient, or the result in fp32
        2 * width * elements + gram,
        width * elements + 2 * gram,
    )


def _batch_size(shape: torch.Size) -> int:
    """Return how many parameters of this shape are in a batch."""
    return max(1, BATCH_ELEMENTS // shape.numel())


@dataclass(frozen=True)
class _Batch:
    """Matrices of one shape: `matrices` are the parameters, or views of them, one for each of n."""

    params: list[nn.Parameter]
    matrices: list[Tensor]
    momentum: Tensor  # (n, rows, cols)

    def gradients(self) -> Tensor:
        """Return the gradients of the matrices: (n, rows, cols)."""
        shape = self.momentum.shape[1:]
        return torch.cat([param.grad.view(-1, *shape) for param in self.params])  # type: ignore[union-attr]


class Muon(Rule):
    """Muon over named parameters: matrices (rows, cols), and stacks of matrices (k, rows, cols).

    Each matrix of a stack, such as one expert's, is orthogonalized for itself. `momentum` has each
    parameter's buffer by name, as a view into its batch. `dtype` is the precision of the
    Newton–Schulz iterations. Several ranks divide the matrices between them (divided_muon.py).
    """

    roles = frozenset({"matrix"})
    needs_whole_matrices = True

    @staticmethod
    def state(shape: torch.Size) -> Layout:
        """Return the layout of the momentum."""
        return {"momentum": (shape, torch.float32)}

    def __init__(
        self,
        params: dict[str, nn.Parameter],
        *,
        weight_decay: float,
        dtype: torch.dtype,
    ) -> None:
        self.weight_decay, self.dtype = weight_decay, dtype
        self.momentum: dict[str, Tensor] = {}
        self._batches: list[_Batch] = []
        by_shape: dict[torch.Size, list[str]] = defaultdict(list)
        for name, param in params.items():
            by_shape[param.shape].append(name)
        for shape, names in by_shape.items():
            size = _batch_size(shape)
            for start in range(0, len(names), size):
                self._add_batch({name: params[name] for name in names[start : start + size]})

    def _add_batch(self, params: dict[str, nn.Parameter]) -> None:
        """Add a batch of parameters of one shape."""
        every = list(params.values())
        shape, device = every[0].shape, every[0].device
        momentum = torch.zeros((len(params), *shape), dtype=torch.float32, device=device)
        self.momentum.update(zip(params, momentum.unbind()))
        matrices = [one for param in every for one in param.detach().view(-1, *shape[-2:]).unbind()]
        self._batches.append(_Batch(every, matrices, momentum.view(-1, *shape[-2:])))

    @torch.no_grad()
    def step(self, lr: float, momentum: float) -> None:
        """Update every parameter from its `.grad`."""
        for batch in self._batches:
            grads = batch.gradients()
            batch.momentum.lerp_(grads, 1 - momentum)
            update = orthogonalize(grads.lerp_(batch.momentum, momentum), self.dtype).float()
            apply_update(batch.matrices, list(update.unbind()), lr, self.weight_decay)
