"""Normalize by the root mean square (Zhang and Sennrich 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Computes x / sqrt(mean(x²) + eps) · weight over the last dimension, in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, width) of any dtype to (…, width) in fp32."""
        return nn.functional.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps)


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype of products of x with a weight: autocast's if it is on, else the weight's.

    Casting x once serves several projections; autocast would cast x for each projection.
    """
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
