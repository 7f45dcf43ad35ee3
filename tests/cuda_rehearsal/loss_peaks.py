"""Compute losses on the pretended card, and print the peak of each.

environment.py starts this program: `python -m tests.cuda_rehearsal.loss_peaks`. The compiled kernel
between the matrix products is replaced by its results, which is all that it allocates.
"""

from __future__ import annotations

import gc
from dataclasses import dataclass
from itertools import product
from unittest import mock

import torch
from torch import Tensor

from pion.model import loss
from tests.cuda_rehearsal.live_bytes import LiveBytes
from tests.cuda_rehearsal.pretended_card import pretended_card
from tests.cuda_rehearsal.report import hand_back, handed_back


@dataclass(frozen=True)
class Loss:
    """A loss over `rows` hidden states, with its gradients."""

    rows: int
    d_model: int
    vocab: int
    cap: float | None
    bf16: bool
    compiled: bool


LOSSES = [
    Loss(rows, d_model, vocab, cap, bf16, compiled)
    for rows, (d_model, vocab), cap, bf16, compiled in product(
        (2048, 7 * 2048),
        ((640, 50_258), (1600, 50_304), (384, 512)),
        (None, 15.0),
        (False, True),
        (False, True),
    )
]


def peak(live: LiveBytes, how: Loss) -> int:
    """Return the most bytes at once, without the hidden states, the weight and the targets."""
    with torch.device("cuda"):
        hidden = torch.zeros(how.rows, how.d_model, requires_grad=True)
        weight = torch.zeros(how.vocab, how.d_model, requires_grad=True)
        targets = torch.zeros(how.rows, dtype=torch.int64)
    gc.collect()
    given = live.live
    live.start()
    kernel = mock.patch.object(loss, "_compiled_gradient_of_logits", return_value=_results)
    with kernel, torch.autocast("cuda", torch.bfloat16, enabled=how.bf16):
        loss.linear_cross_entropy(hidden, weight, targets, how.cap, compiled=how.compiled)
    return live.peak - given


def _results(
    logits: Tensor,
    of_target: Tensor,
    states: Tensor,
    targets: Tensor,
    vocab: int,
    cap: float | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gradient = torch.empty_like(logits, dtype=states.dtype)
    factors = logits.new_ones(len(logits), 1)
    return logits.new_zeros(()), gradient, factors.to(states.dtype), factors, states.clone()


def main() -> None:
    with pretended_card() as watch:
        live = LiveBytes(watch)
        hand_back([peak(live, how) for how in LOSSES])


def read_loss_peaks(output: str) -> dict[Loss, int]:
    """Return what the program printed."""
    return dict(zip(LOSSES, handed_back(output), strict=True))


if __name__ == "__main__":
    main()
