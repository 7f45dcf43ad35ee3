"""Muon: momentum with an orthogonalized update, for the matrices inside the blocks.

    m ← βm + (1−β)g,  u = NS(βm + (1−β)g),  p ← p(1 − lr·wd) − lr·√max(1, rows/cols)·u

NS moves every singular value of its argument toward 1 (Jordan et al. 2024, "Muon: An optimizer for
hidden layers in neural networks").
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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


@dataclass(frozen=True)
class _Batch:
    params: list[Tensor]
    momentum: Tensor  # (n, rows, cols)


class Muon:
    """Muon over named 2-D parameters.

    `momentum` has each parameter's buffer by name, as a view into its batch. `dtype` is the
    precision of the Newton–Schulz iterations.
    """

    def __init__(
        self,
        params: dict[str, nn.Parameter],
        *,
        beta: float,
        weight_decay: float,
        dtype: torch.dtype,
    ) -> None:
        self.beta, self.weight_decay, self.dtype = beta, weight_decay, dtype
        self.momentum: dict[str, Tensor] = {}
        self._batches: list[_Batch] = []
        by_shape: dict[torch.Size, list[str]] = defaultdict(list)
        for name, param in params.items():
            by_shape[param.shape].append(name)
        for shape, names in by_shape.items():
            size = max(1, BATCH_ELEMENTS // shape.numel())
            for start in range(0, len(names), size):
                batch_names = names[start : start + size]
                batch_params: list[Tensor] = [params[name] for name in batch_names]
                momentum = torch.zeros(
                    (len(batch_names), *shape), dtype=torch.float32, device=batch_params[0].device
                )
                self._batches.append(_Batch(batch_params, momentum))
                self.momentum.update(zip(batch_names, momentum.unbind()))

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update every parameter from its `.grad`."""
        for batch in self._batches:
            grads = torch.stack([param.grad for param in batch.params])  # type: ignore[misc]
            batch.momentum.lerp_(grads, 1 - self.beta)
            update = orthogonalize(grads.lerp_(batch.momentum, self.beta), self.dtype).float()
            rows, cols = update.shape[-2:]
            torch._foreach_mul_(batch.params, 1 - lr * self.weight_decay)
            torch._foreach_add_(
                batch.params, list(update.unbind()), alpha=-lr * math.sqrt(max(1.0, rows / cols))
            )
