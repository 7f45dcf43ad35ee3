"""How likely the model found a token, and which tokens it found likelier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pion.model.decoder import Decoder

# The logits of so many positions of a prompt are in memory at once.
ROWS = 64


@dataclass(frozen=True)
class Logprobs:
    """Natural logarithms of probabilities, before temperature and the other settings.

    Attributes:
        drawn: that of the drawn token.
        top: the likeliest ids with theirs, the likeliest first.
    """

    drawn: float
    top: tuple[tuple[int, float], ...]


def logprobs_of(logits: Tensor, token: int, count: int) -> Logprobs:
    """Return the log-probability of `token` and of the `count` likeliest ids, from (vocab,)."""
    return _of_rows(logits[None], [token], count)[0]


@torch.inference_mode()
def logprobs_of_prompt(
    model: Decoder, hidden: Tensor, following: Sequence[int], count: int
) -> list[Logprobs]:
    """Return the log-probability of each id that follows hidden states (T, d_model)."""
    found: list[Logprobs] = []
    for begin in range(0, len(following), ROWS):
        ids = following[begin : begin + ROWS]
        logits = model.logits(hidden[begin : begin + len(ids)]).float().cpu()
        found += _of_rows(logits, ids, count)
    return found


def _of_rows(logits: Tensor, ids: Sequence[int], count: int) -> list[Logprobs]:
    every = logits.log_softmax(dim=-1)
    drawn = every.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
    values, top = every.topk(min(count, every.shape[1]))
    rows = zip(drawn, top.tolist(), values.tolist(), strict=True)
    return [Logprobs(one, tuple(zip(*likeliest, strict=True))) for one, *likeliest in rows]
