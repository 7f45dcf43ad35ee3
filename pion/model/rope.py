"""Rotary positions (Su et al. 2021, "RoFormer") in the half-split layout.

Dimension i of a head is rotated together with dimension i + head_dim / 2.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

# Cosines and sines of the tokens' positions, fp32, each (B or 1, T, 1, head_dim / 2).
Rotation = tuple[Tensor, Tensor]


@lru_cache(maxsize=8)
def rotary_table(
    seq_len: int, head_dim: int, theta: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of position · theta^(−2i / head_dim), each (seq_len, head_dim / 2)."""
    # The table is cached, and tensors made in inference mode can't be used by autograd later.
    with torch.inference_mode(False):
        exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
        positions = torch.arange(seq_len, dtype=torch.float32, device=device)
        angles = positions[:, None] * theta**-exponents
        return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate x (B, T, heads, head_dim), fp32, to its positions."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
