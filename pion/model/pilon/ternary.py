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
        # Not in place: torch 2.11's compiler would lose the gradient, and say nothing.
        return (x / scale).round().clamp(-most, most)

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


# ---------------------------------------------------------------- in a file

# Five trits, numbers of −1, 0 or 1, are a byte. The byte of the trits t₀ … t₄ is Σ (tᵢ + 1) · 3ⁱ,
# from 0 to 242. Where the number of trits is not a multiple of five, zeros follow the last one.
TRITS_IN_A_BYTE = 5
LARGEST_BYTE = 3**TRITS_IN_A_BYTE - 1


def packed_bytes(trits: int) -> int:
    """Return the number of bytes for that many trits."""
    return -(-trits // TRITS_IN_A_BYTE)


def pack_trits(trits: Tensor) -> Tensor:
    """Return the bytes of a tensor of trits, in its row-major order, as uint8."""
    digits = torch.ones(packed_bytes(trits.numel()) * TRITS_IN_A_BYTE, dtype=torch.int32)
    digits[: trits.numel()] = trits.flatten().to(torch.int32) + 1
    powers = 3 ** torch.arange(TRITS_IN_A_BYTE, dtype=torch.int32)
    return (digits.view(-1, TRITS_IN_A_BYTE) * powers).sum(dim=1).to(torch.uint8)


def unpack_trits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the trits of a shape as int8, from their bytes; raise ValueError for other bytes."""
    count = torch.Size(shape).numel()
    if len(packed) != packed_bytes(count):
        raise ValueError(f"{count:,} trits take {packed_bytes(count):,} bytes, not {len(packed):,}")
    if (packed > LARGEST_BYTE).any():
        raise ValueError(f"a byte above {LARGEST_BYTE} holds a value that is no trit")
    powers = 3 ** torch.arange(TRITS_IN_A_BYTE, device=packed.device, dtype=torch.int32)
    digits = packed.to(torch.int32)[:, None] // powers % 3
    trits = digits.flatten().to(torch.int8) - 1
    if trits[count:].any():
        raise ValueError("the last byte holds more trits than there are")
    return trits[:count].view(shape)
