"""How likely the model found a token, and which tokens it found likelier."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
    every = logits.log_softmax(dim=0)
    values, ids = every.topk(min(count, len(every)))
    return Logprobs(float(every[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))
