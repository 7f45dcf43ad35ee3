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
    seq_len: int, head_dim: int, theta: float, device: torch.device, half: bool = False
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of position · theta^(−2i / head_dim), each (seq_len, head_dim / 2).

    With `half`, the first half of the dimensions i have theta^(−4i / (head_dim − 4)), from 1 to
    1 / theta, and the others have no rotation (Daisy-Wee, as in modded-nanogpt).
    """
    # The table is cached, and tensors made in inference mode can't be used by autograd later.
    with torch.inference_mode(False):
        if half:
            turning = torch.linspace(0, 1, head_dim // 4, dtype=torch.float32, device=device)
            frequencies = torch.cat((theta**-turning, torch.zeros_like(turning)))
        else:
            exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
            frequencies = theta**-exponents
        positions = torch.arange(seq_len, dtype=torch.float32, device=device)
        angles = positions[:, None] * frequencies
        return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate x (B, T, heads, head_dim), fp32, to its positions."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
