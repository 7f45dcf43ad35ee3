"""Ternary weights in a file: five trits, numbers of −1, 0 or 1, in a byte.

The byte of the trits t₀ … t₄ is Σ (tᵢ + 1) · 3ⁱ, from 0 to 242. Where the number of trits is not a
multiple of five, zeros follow the last one.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
