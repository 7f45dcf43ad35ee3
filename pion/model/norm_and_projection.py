"""Normalize by the root mean square (Zhang and Sennrich 2019)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pion.model.pass_kind import PassKind


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

    def kept_bytes(self, at: PassKind, *, of_product: bool = False) -> int:
        """Return the bytes kept for the backward pass of one vector.

        In fp32, these are the input and 1 / sqrt(…). A CPU, which has no fused kernel, also keeps
        the normalized input if there is a gain. Where a matrix product made the input
        (`of_product`), compiled code keeps this product, in its dtype.
        """
        return kept_by_norm(self.width, at, gain=self.weight is not None, of_product=of_product)


def kept_by_norm(width: int, at: PassKind, *, gain: bool, of_product: bool = False) -> int:
    """Return what `RMSNorm.kept_bytes` does, without a norm."""
    vectors = 2 if at.device == "cpu" and gain else 1
    each = at.width if at.compiled and of_product else 4 * vectors
    return each * width + 4


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype of products of x with a weight: autocast's if it is on, else the weight's.

    Casting x once serves several projections; autocast would cast x for each projection.
    """
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
