"""Compare flex attention's block masks, built on the card, with the boolean masks of the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pion.bench.models import Bench
from pion.bench.results import Outcome, judged
from pion.config import ModelConfig
from pion.model.attention.masks import block_mask, build_masks, visited_blocks, window_block_mask

BLOCK = 128
WINDOW = 2 * BLOCK
ROWS = 2
CPU = torch.device("cpu")


def check_masks(bench: Bench) -> Outcome:
    """Compare every token's keys, for documents, windows, and windows with documents."""
    tokens = 4 * BLOCK if bench.tiny else 16 * BLOCK
    places = torch.arange(tokens)
    documents = places * torch.tensor([[7], [3]]) // tokens
    compared, wrong = 0, []
    for name, windowed, numbers in (
        ("documents", False, documents),
        ("windows", True, None),
        ("windows and documents", True, documents),
    ):
        for reach, expected in _on_cpu(tokens, windowed, numbers).items():
            shown = _shown(_on_card(bench.device, tokens, reach, numbers), tokens)
            found, expected = torch.broadcast_tensors(shown, expected)
            compared += found.numel()
            if not torch.equal(found, expected):
                wrong.append(f"{name} ({reach})")
    if wrong:
        words = f"different from the CPU's: {', '.join(wrong)}"
    else:
        words = f"{compared:,} pairs of tokens agree"
    return judged(not wrong, words, pairs=compared, tokens=tokens)


def _config(tokens: int, windowed: bool) -> ModelConfig:
    shape = {"d_model": 64, "n_layers": 3, "n_heads": 1, "n_kv_heads": 1, "d_ff": 8}
    part = {"windows": {"tokens": WINDOW, "block": BLOCK}} if windowed else {}
    return ModelConfig.of({**shape, **part, "vocab_size": 8, "seq_len": tokens})


def _on_cpu(tokens: int, windowed: bool, documents: Tensor | None) -> dict[str, Tensor]:
    """Return which keys each query sees, by reach: (B or 1, tokens, tokens)."""
    row = torch.zeros(1, tokens, dtype=torch.int64)
    masks = build_masks(_config(tokens, windowed), row, tokens, documents)
    found = {}
    for reach, mask in masks.items():
        assert mask.allowed is not None
        found[str(reach)] = mask.allowed.reshape(-1, tokens, tokens)
    return found


def _on_card(device: torch.device, tokens: int, reach: str, documents: Tensor | None) -> Any:
    """Return flex attention's mask, built by the functions that training on CUDA calls."""
    there = None if documents is None else documents.to(device)
    if reach == "full":
        return block_mask(tokens, there, device)
    count = WINDOW // BLOCK // (1 if reach == "long" else 2)
    numbers = torch.zeros(1, tokens, dtype=torch.int64, device=device) if there is None else there
    full, partial = visited_blocks(numbers, count, BLOCK)
    return window_block_mask(full, partial, there, tokens, BLOCK)


def _shown(mask: Any, tokens: int) -> Tensor:
    """Return what a BlockMask shows the kernel: partial blocks by its function, full ones whole."""
    position = torch.arange(tokens, device=mask.kv_indices.device)
    rows = mask.kv_num_blocks.shape[0]
    inside = torch.stack(
        [
            mask.mask_mod(row, torch.zeros_like(row), position[:, None], position)
            for row in torch.arange(rows, device=position.device)
        ]
    ).cpu()
    partial = _per_token(mask.kv_num_blocks, mask.kv_indices, tokens)
    whole = _per_token(mask.full_kv_num_blocks, mask.full_kv_indices, tokens)
    return whole | (partial & inside)


def _per_token(counts: Tensor, numbers: Tensor, tokens: int) -> Tensor:
    """Return the visited blocks, (B, tokens, tokens), from their counts and numbers."""
    counts, numbers = counts.cpu()[:, 0], numbers.cpu()[:, 0].long()
    listed = torch.arange(numbers.shape[-1]) < counts[..., None]
    visited = torch.zeros(numbers.shape, dtype=torch.bool).scatter(2, numbers, listed)
    each = visited.repeat_interleave(BLOCK, dim=1).repeat_interleave(BLOCK, dim=2)
    return each[:, :tokens, :tokens]
