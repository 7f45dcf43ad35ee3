"""Round weights to three values and activations to whole numbers, with gradients straight through.

Ternary weights and their absmean scale are from Ma et al. 2024, "The era of 1-bit LLMs" (BitNet
b1.58). The gradient of rounding is taken to be 1 (Bengio et al. 2013, "Estimating or propagating
gradients through stochastic neurons").
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

# A scale is at least this, so that zeros can be divided by it.
SMALLEST_SCALE = 1e-8

ScaleOf = Literal["primitive", "bank", "chosen"]


class _Rounded(torch.autograd.Function):
    """Computes clip(round(x / scale)) within ±most; the gradient is that of x / scale."""

    @staticmethod
    def forward(x: Tensor, scale: Tensor, most: int) -> Tensor:
        return (x / scale).round_().clamp_(-most, most)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (scale,) = ctx.saved_tensors
        return gradients[0] / scale, None, None


def rounded(x: Tensor, scale: Tensor, most: int) -> Tensor:
    """Return x / scale in whole numbers from −most to most; the gradient is that of x / scale."""
    result: Tensor = _Rounded.apply(x, scale, most)
    return result


@torch.no_grad()
def ternary_scales(bank: Tensor, chosen: Tensor, of: ScaleOf) -> Tensor:
    """Return the scale of each chosen primitive, (k, 1, 1) or (1, 1, 1): a mean of |weights|.

    `bank` has one factor of all primitives (n, rank, width), `chosen` that of the chosen ones
    (k, rank, width). `of` says what the mean is over: each primitive, the whole bank, or all chosen
    primitives together.
    """
    if of == "primitive":
        mean = chosen.abs().mean(dim=(1, 2), keepdim=True)
    else:
        mean = (bank if of == "bank" else chosen).abs().mean().view(1, 1, 1)
    return mean.clamp(min=SMALLEST_SCALE)


@torch.no_grad()
def activation_scales(x: Tensor, levels: int, of: Literal["token", "batch"]) -> Tensor:
    """Return the scale that maps the largest |x| to `levels`: (B, T, 1), or (1, 1, 1)."""
    if of == "token":
        # On a CPU, this takes a third of the time of |x| and its largest value.
        largest = torch.maximum(x.amax(dim=-1, keepdim=True), -x.amin(dim=-1, keepdim=True))
    else:
        largest = x.abs().amax().view(1, 1, 1)
    return largest.clamp(min=SMALLEST_SCALE) / levels
