"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension: fp32 in whatever dtype x comes."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps)


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype products of x with a weight run in: autocast's where it is on, else the weight's.

    Casting to it once serves several projections of one input; autocast would cast for each.
    """
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
