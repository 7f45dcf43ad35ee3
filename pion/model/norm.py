"""Normalize by the root mean square (Zhang and Sennrich 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Computes x / sqrt(mean(x²) + eps) · weight over the last dimension, in fp32.

    Without a gain there is no weight.
    """

    def __init__(self, width: int, eps: float, gain: bool = True) -> None:
        super().__init__()
        self.width, self.eps = width, eps
        self.weight = nn.Parameter(torch.ones(width)) if gain else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, width) of any dtype to (…, width) in fp32."""
        weight = None if self.weight is None else self.weight.float()
        return nn.functional.rms_norm(x.float(), (self.width,), weight, self.eps)

    def kept_bytes(self) -> int:
        """Return the bytes kept for the backward pass of one vector.

        In fp32, these are the input, 1 / sqrt(…) and, if there is a gain, the normalized input.
        """
        vectors = 1 if self.weight is None else 2
        return 4 * (vectors * self.width + 1)


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype of products of x with a weight: autocast's if it is on, else the weight's.

    Casting x once serves several projections; autocast would cast x for each projection.
    """
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
