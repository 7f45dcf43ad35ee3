"""Rotary positions (Su et al. 2021, "RoFormer") in the half-split layout.

Dimension i of a head is rotated together with dimension i + head_dim / 2.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pion.config import ModelConfig
from pion.model.forward_pass import ForwardPass

# Cosines and sines of the tokens' positions, fp32, each (B or 1, T, 1, head_dim / 2).
Rotation = tuple[Tensor, Tensor]

# A context has a table if cosines and sines together have at most this many numbers: 64 MiB. The
# rotations of a longer context are computed for the tokens that are there.
LARGEST_TABLE = 2**24


class Frequencies(NamedTuple):
    """What decides the frequencies of a head's rotations: theta^(−2i / head_dim) for dimension i.

    With `half`, the first half of the dimensions i have theta^(−4i / (head_dim − 4)), from 1 to
    1 / theta, and the others have no rotation (Daisy-Wee, as in modded-nanogpt).
    """

    head_dim: int
    theta: float
    half: bool = False

    def on(self, device: torch.device) -> Tensor:
        """Return the frequencies (head_dim / 2) in fp32."""
        if self.half:
            turning = torch.linspace(0, 1, self.head_dim // 4, dtype=torch.float32, device=device)
            return torch.cat((self.theta**-turning, torch.zeros_like(turning)))
        whole = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device)
        return self.theta ** -(whole / self.head_dim)


@lru_cache(maxsize=8)
def rotary_table(
    seq_len: int, frequencies: Frequencies, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of position · frequency, each (seq_len, head_dim / 2)."""
    # The table is cached, and tensors made in inference mode can't be used by autograd later.
    with torch.inference_mode(False):
        positions = torch.arange(seq_len, dtype=torch.float32, device=device)
        angles = positions[:, None] * frequencies.on(device)
        return angles.cos(), angles.sin()


def rotation_at(positions: Tensor, frequencies: Frequencies) -> Rotation:
    """Return the rotations of tokens at these positions (B or 1, T), without a table."""
    angles = positions[:, :, None, None].float() * frequencies.on(positions.device)
    return angles.cos(), angles.sin()


def rotation_bytes(config: ModelConfig, at: ForwardPass, rows: int) -> int:
    """Return the bytes of the rotations of a pass over `rows` rows, with the table if there is one.

    Rows of documents have their own positions. Learned positions have no rotations.
    """
    if config.positions == "learned":
        return 0
    each = 4 * config.head_dim * at.tokens
    if config.seq_len * config.head_dim > LARGEST_TABLE:
        return each * (rows if at.documents else 1)
    return 4 * config.head_dim * config.seq_len + (each * rows if at.documents else 0)


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate x (B, T, heads, head_dim), fp32, to its positions."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
