"""Draw the next token of a text from the model's predictions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from pion.generation.bounds import check


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from its logits; see `sample`.

    Raises BadInput for values outside `pion.generation.bounds.BOUNDS`.
    """

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(Sampling):
            value = getattr(self, field.name)
            check(field.name, max(value, 0) if field.name == "temperature" else value)


def sample(
    logits: Tensor,
    sampling: Sampling,
    present: Sequence[int],
    randomness: torch.Generator,
    given: int = 0,
) -> int:
    """Draw one id from fp32 logits (vocab,); `present` has the ids so far, of which the first
    `given` were not drawn.

    1. Logits of ids in `present` are divided by `repetition_penalty` if positive and multiplied by
       it if negative (Keskar et al. 2019, "CTRL").
    2. Logits of ids that were drawn are lowered by `presence_penalty`, and by `frequency_penalty`
       for each time (OpenAI's API, https://platform.openai.com/docs/api-reference/chat).
    3. All logits are divided by `temperature`. A temperature of 0 or less takes the likeliest id.
    4. Ids whose probability is less than `min_p` of the likeliest id's are left out (Nguyen et al.
       2024, "Turning up the heat").
    5. Ids less likely than the `top_k`-th are left out (Fan et al. 2018, "Hierarchical neural
       story generation"); 0 leaves out none.
    6. With the likeliest id first, ids remain until their probabilities add up to `top_p`: the id
       that crosses it remains (Holtzman et al. 2020, "The curious case of neural text
       degeneration").
    7. One uniform number is taken from `randomness`, and the id is where the cumulative probability
       reaches it. A text so takes as many numbers as it has drawn ids, alone or in a batch.
    """
    logits = _penalized(logits, sampling, present, given)
    if sampling.temperature <= 0:
        return int(logits.argmax())
    # With a maximum of 0, logits stay finite at any small temperature.
    logits = (logits - logits.max()).double() / sampling.temperature
    count = sampling.top_k if 0 < sampling.top_k < len(logits) else len(logits)
    # Ids that a grammar forbids have -inf. They are left out, also if fewer than `top_k` remain.
    least = logits.topk(count).values[-1].clamp(min=torch.finfo(logits.dtype).min)
    if sampling.min_p > 0:
        least = max(least, torch.tensor(math.log(sampling.min_p)))
    kept = (logits >= least).nonzero().squeeze(1)
    probabilities = logits[kept].softmax(dim=0)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(dim=0) - ordered
        # In the order of the ids: rounding exchanges the places of ids that are as likely.
        within = order[before < sampling.top_p].sort().values
        kept, probabilities = kept[within], probabilities[within]
    cumulative = probabilities.cumsum(dim=0)
    number = torch.rand((), dtype=torch.float64, generator=randomness) * cumulative[-1]
    place = torch.searchsorted(cumulative, number, right=True)
    return int(kept[place.clamp(max=len(kept) - 1)])


def _penalized(logits: Tensor, sampling: Sampling, present: Sequence[int], given: int) -> Tensor:
    """Return the logits with steps 1 and 2 of `sample`."""
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(list({token for token in present if token < len(logits)})).long()
        values = logits[seen]
        penalty = torch.tensor(sampling.repetition_penalty)
        logits = logits.clone()
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if sampling.presence_penalty != 0 or sampling.frequency_penalty != 0:
        drawn = Counter(present[given:])
        ids = torch.tensor(list(drawn)).long()
        times = torch.tensor(list(drawn.values()), dtype=torch.float32)
        logits = logits.clone()
        logits[ids] -= sampling.presence_penalty + sampling.frequency_penalty * times
    return logits
