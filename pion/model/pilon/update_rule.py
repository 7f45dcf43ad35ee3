"""The rule for the primitives of a bank: AdamW, with a count of updates for each primitive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# After so many updates, the corrections are 1 in fp32, for every β up to 0.99998.
MOST_COUNTED = 1_000_000


class PrimitiveWise:
    """AdamW for one parameter `factors` (n, rank, width), with a count of updates per primitive.

    `settings` are TrainSettings. `state` has exp_avg and exp_avg_sq like the parameter, and counts
    (n,) int64.
    """

    def __init__(self, factors: Tensor, settings: Any) -> None:
        self._factors, self._settings = factors, settings
        device = factors.device
        self.state = {
            "exp_avg": torch.zeros_like(factors),
            "exp_avg_sq": torch.zeros_like(factors),
            "counts": torch.zeros(len(factors), dtype=torch.int64, device=device),
        }
        # By count: 1 / (1 − β1^count) and 1 / √(1 − β2^count). A count never exceeds the steps.
        self._last = min(settings.steps, MOST_COUNTED)
        count = torch.arange(self._last + 1, dtype=torch.float64).clamp(min=1)
        first, second = (1 - beta**count for beta in (settings.beta1, settings.beta2))
        self._corrections = torch.stack((1 / first, second.rsqrt())).float().to(device)
        self._shares = torch.tensor([[1 - settings.beta1], [1 - settings.beta2]]).to(device)
        self._eps = torch.tensor(settings.eps, device=device)

    @staticmethod
    def decay(settings: Any) -> float:
        """Return the weight decay of primitives, and of what belongs to a bank."""
        return settings.primitive_weight_decay

    def step(self, gradient: Tensor, lr: float) -> None:
        """Update the primitives that have a gradient. The gradient is overwritten."""
        chosen = gradient.flatten(1).any(dim=1)  # (n,)
        exp_avg, exp_avg_sq, counts = self.state.values()
        counts.add_(chosen)
        first, second = (self._shares * chosen)[..., None, None]
        exp_avg.lerp_(gradient, first)
        exp_avg_sq.lerp_(gradient.square_(), second)
        if self._last < self._settings.steps:
            counts = counts.clamp(max=self._last)
        scale, root = (self._corrections[:, counts] * chosen)[..., None, None]
        if decay := self.decay(self._settings):
            self._factors.mul_(1 - lr * decay * chosen[:, None, None])
        # For an unchosen primitive, 0 is divided by eps.
        size = torch.addcmul(self._eps, exp_avg_sq.sqrt(), root)
        self._factors.addcdiv_(exp_avg * scale, size, value=-lr)
