"""Rotary positions (Su et al. 2021, "RoFormer") in the half-split layout.

Dimension i of a head is rotated together with dimension i + head_dim / 2.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pion.config.model_config import ModelConfig
from pion.config.parts import Heads, RopeScaling

# A context has a table if cosines and sines together have at most this many numbers: 64 MiB. The
# rotations of a longer context are computed for the tokens that are there.
LARGEST_TABLE = 2**24


class Rotation(NamedTuple):
    """Cosines and sines of the tokens' positions, fp32, each (B or 1, T, 1, head_dim / 2).

    After the rotation, queries are multiplied by `growth` (B or 1, 1, T, 1); None: by nothing.
    """

    cos: Tensor
    sin: Tensor
    growth: Tensor | None = None


class Frequencies(NamedTuple):
    """What decides the frequencies of a head's rotations: theta^(−2i / head_dim) for dimension i,
    where `head_dim` counts the dimensions that rotate.

    With `half`, the first half of the dimensions i have theta^(−4i / (head_dim − 4)), from 1 to
    1 / theta, and the others have no rotation (Daisy-Wee, as in modded-nanogpt). With `scaling`,
    slow frequencies are slowed down: see `scaled`, and for YaRN Peng et al. 2023. LongRoPE (Ding et
    al. 2024) has other factors in a `long` context.
    """

    head_dim: int
    theta: float
    half: bool = False
    scaling: RopeScaling | None = None
    long: bool = False

    def on(self, device: torch.device) -> Tensor:
        """Return the frequencies (head_dim / 2) in fp32, in radians per token."""
        if self.half:
            turning = torch.linspace(0, 1, self.head_dim // 4, dtype=torch.float32, device=device)
            plain = torch.cat((self.theta**-turning, torch.zeros_like(turning)))
        else:
            dimensions = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device)
            plain = self.theta ** -(dimensions / self.head_dim)
        scaling = self.scaling
        if scaling is None or scaling.kind == "llama3":
            return plain if scaling is None else scaled(plain, scaling)
        if scaling.kind == "linear":
            return plain / scaling.factor
        if scaling.kind == "longrope":
            factors = scaling.long_factors if self.long else scaling.short_factors
            return plain / torch.tensor(factors, device=device)
        original, base = scaling.original_max_position_embeddings, 2 * math.log(self.theta)
        # The dimensions whose frequencies turn so many times in the original context.
        low, high = (
            self.head_dim * math.log(original / (turns * 2 * math.pi)) / base
            for turns in (scaling.beta_fast, scaling.beta_slow)
        )
        if scaling.whole_dims:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.head_dim - 1)
        places = torch.arange(self.head_dim // 2, device=device)
        ramp = ((places - low) / max(high - low, 0.001)).clamp(0, 1)
        return plain / scaling.factor * ramp + plain * (1 - ramp)

    def turn(self, angles: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cosines and sines of angles, with the amplitude of a scaling."""
        cos, sin, scaling = angles.cos(), angles.sin(), self.scaling
        if scaling is None:
            return cos, sin
        of_kind = 0.1 * math.log(scaling.factor) + 1 if scaling.kind == "yarn" else 1.0
        amplitude = scaling.amplitude or of_kind
        return (cos, sin) if amplitude == 1 else (cos * amplitude, sin * amplitude)


def frequencies_of(config: ModelConfig, *, windowed: bool = False) -> Frequencies:
    """Return what decides the frequencies of a model with rotary positions, or of its layers with a
    window."""
    heads = config.heads or Heads()
    width, half = heads.rotary_width(config.head_dim), heads.rotary == "half"
    window_theta = config.windows.rope_theta if windowed and config.windows is not None else None
    if window_theta is not None:
        return Frequencies(width, window_theta, half)
    scaling = config.rope_scaling
    long = scaling is not None and scaling.long_in(config.seq_len)
    return Frequencies(width, config.rope_theta, half, scaling, long)


def scaled(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Return frequencies for a longer context than the original one, in fp32.

    This is the scaling of Llama 3.1 (Llama Team 2024, "The Llama 3 herd of models"; `apply_scaling`
    in its reference code). A frequency f turns n = original context · f / 2π times in the original
    context, and becomes share · f + (1 − share) · f / factor. The share rises from 0 at
    n = low_freq_factor to 1 at n = high_freq_factor.
    """
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    # Factors may be so close that their difference is 0 in fp32. Then 0 / 0 is no turns at all.
    share = ((turns - low) / (high - low)).nan_to_num(nan=0.0).clamp(0, 1)
    return share * frequencies + (1 - share) * frequencies / scaling.factor


@lru_cache(maxsize=8)
def rotary_table(
    seq_len: int, frequencies: Frequencies, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of position · frequency, each (seq_len, head_dim / 2)."""
    # The table is cached, and tensors made in inference mode can't be used by autograd later.
    with torch.inference_mode(False):
        positions = torch.arange(seq_len, dtype=torch.float32, device=device)
        angles = positions[:, None] * frequencies.on(device)
        return frequencies.turn(angles)


def rotation_at(positions: Tensor, frequencies: Frequencies) -> Rotation:
    """Return the rotations of tokens at these positions (B or 1, T), without a table."""
    angles = positions[:, :, None, None].float() * frequencies.on(positions.device)
    return Rotation(*frequencies.turn(angles))


def rotations(
    config: ModelConfig,
    past: int,
    length: int,
    positions: Tensor | None,
    device: torch.device,
    *,
    windowed: bool = False,
) -> Rotation | None:
    """Return the rotation of each token, by `positions` (B, T) or else by the place in the row.

    The row has `length` tokens after `past` others. None: positions are learned.
    """
    if config.positions == "learned":
        return None
    table = table_of(config, device, windowed=windowed)
    frequencies = frequencies_of(config, windowed=windowed)
    scaling = frequencies.scaling
    growth = 0.0 if scaling is None else scaling.growth
    if positions is None and table is not None and not growth:
        return Rotation(*(each[None, past : past + length, None] for each in table))
    if positions is None:
        positions = torch.arange(past, past + length, device=device)[None]
    rotation = (
        rotation_at(positions, frequencies)
        if table is None
        else Rotation(*(each[positions][:, :, None] for each in table))
    )
    if scaling is None or not growth:
        return rotation
    contexts = (positions // scaling.original_max_position_embeddings).float()
    return rotation._replace(growth=(1 + growth * contexts.log1p())[:, None, :, None])


def tables_of(config: ModelConfig, device: torch.device) -> list[tuple[Tensor, Tensor] | None]:
    """Return the tables that a pass of the model reads."""
    return [table_of(config, device, windowed=windowed) for windowed in (False, True)]


def table_of(
    config: ModelConfig, device: torch.device, *, windowed: bool = False
) -> tuple[Tensor, Tensor] | None:
    """Return the table of a model's context; None: positions are learned, or there are too many."""
    if config.positions == "learned" or config.seq_len * config.head_dim > LARGEST_TABLE:
        return None
    return rotary_table(config.seq_len, frequencies_of(config, windowed=windowed), device)


def rotate(x: Tensor, rotation: Rotation, pairs: bool = False) -> Tensor:
    """Rotate x (B, T, heads, head_dim), fp32, to its positions.

    Only the first dimensions rotate, if the rotation has fewer. With `pairs`, neighbours rotate
    together (GLM). They are put in halves, where they stay: scores don't depend on the order.
    """
    cos, sin, _ = rotation
    width = 2 * cos.shape[-1]
    if width < x.shape[-1]:
        turned = rotate(x[..., :width], rotation, pairs)
        return torch.cat((turned, x[..., width:].to(turned.dtype)), dim=-1)
    if pairs:
        x = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    if torch.compiler.is_compiling():
        return _rotate_by_flipping(x, cos, sin)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _rotate_by_flipping(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Return what `rotate` does, without a concatenation.

    The compiler computes the backward pass of a concatenation in a kernel for itself. A flip is
    only another way to read, so the kernel of the norm before can do it.
    """
    halves = x.unflatten(-1, (2, x.shape[-1] // 2))
    signs = (torch.arange(2, device=x.device) * 2 - 1)[:, None]  # −1, 1
    turned = halves * cos[..., None, :] + halves.flip(-2) * (sin[..., None, :] * signs)
    return turned.flatten(-2)
