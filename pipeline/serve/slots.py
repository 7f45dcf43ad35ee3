"""How many answers a model can write at once in the memory that there is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pion.errors import BadInput
from pion.generation.engine import bytes_per_token
from pion.model.decoder import Decoder
from pion.train.hardware import memory_in_use, total_memory
from pipeline.console.formats import size

# The share of the free memory that slots may take. The rest is for reading prompts.
SHARE = 0.8
# While a long prompt is read, its keys and values are outside the slots, twice when they move.
SLOTS_FOR_READING = 2


@dataclass(frozen=True)
class Slots:
    """How many slots a model has, and the bytes that they need."""

    count: int
    bytes: int


def fit_slots(name: str, model: Decoder, wanted: int, seq_len: int, free: int) -> Slots:
    """Return the slots that fit `free` bytes: at most `wanted`.

    Raises BadInput if not even one fits.
    """
    each = bytes_per_token(model) * seq_len
    room = int(SHARE * free)
    count = min(wanted, room // each - SLOTS_FOR_READING) if each else wanted
    if count < 1:
        need = (1 + SLOTS_FOR_READING) * each
        tokens = int(seq_len * room / need) if need else 0
        raise BadInput(
            f"{name}: an answer of {seq_len:,} tokens, prompt included, needs {size(each)} of "
            f"memory, and reading a prompt {size(SLOTS_FOR_READING * each)}; {size(room)} may be "
            f"used. Nothing was started. Use a shorter context: --seq-len {max(tokens, 1)}"
        )
    return Slots(count, (count + SLOTS_FOR_READING) * each)


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process can still use on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return total_memory(device) - memory_in_use(device)
