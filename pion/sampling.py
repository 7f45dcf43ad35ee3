"""Draw the next token of a text from the model's predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pion.errors import BadInput


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from its logits; see `sample`.

    Raises BadInput for values that make no sense.
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.temperature):
            raise BadInput(f"temperature is {self.temperature}; use a number, 0 for greedy")
        if self.top_k < 0:
            raise BadInput(f"top_k is {self.top_k}; use 0 for no limit, or a number of tokens")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"top_p is {self.top_p}; it must be above 0 and at most 1 (no limit)")
        if not 0 < self.repetition_penalty < math.inf:
            raise BadInput(
                f"repetition_penalty is {self.repetition_penalty}; "
                "it must be above 0 (1 has no effect)"
            )


def sample(
    logits: Tensor, sampling: Sampling, present: Sequence[int], randomness: torch.Generator
) -> int:
    """Draw one id from fp32 logits (vocab,); `present` has the ids so far.

    1. Logits of ids in `present` are divided by `repetition_penalty` if positive and multiplied by
       it if negative (Keskar et al. 2019, "CTRL").
    2. All logits are divided by `temperature`. A temperature of 0 or less takes the likeliest id.
    3. Ids less likely than the `top_k`-th are left out (Fan et al. 2018, "Hierarchical neural
       story generation"); 0 leaves out none.
    4. With the likeliest id first, all ids are left out from the first one whose cumulative
       probability exceeds `top_p` (after Holtzman et al. 2020, "The curious case of neural text
       degeneration", who still keep that first one). The likeliest id always remains.
    """
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(list({token for token in present if token < len(logits)})).long()
        values = logits[seen]
        penalty = torch.tensor(sampling.repetition_penalty)
        logits = logits.clone()
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if sampling.temperature <= 0:
        return int(logits.argmax())
    # With a maximum of 0, logits stay finite at any small temperature.
    logits = (logits - logits.max()) / sampling.temperature
    count = sampling.top_k if 0 < sampling.top_k < len(logits) else len(logits)
    kept = (logits >= logits.topk(count).values[-1]).nonzero().squeeze(1)
    ordered, order = logits[kept].sort(descending=True, stable=True)
    candidates, probabilities = kept[order], ordered.softmax(dim=0)
    if sampling.top_p < 1:
        within = int((probabilities.cumsum(dim=0) <= sampling.top_p).sum())
        probabilities = probabilities[: max(1, within)]
    return int(candidates[torch.multinomial(probabilities, 1, generator=randomness)])
