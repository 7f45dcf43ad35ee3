"""Draw the next tokens of several texts from the model's predictions, all texts at once.

The device of the predictions does what reads the whole vocabulary (candidates.py). The host draws
among the likeliest ids, in fp64. A draw that these don't decide is made from the whole vocabulary
(`draw_from_all`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from pion.generation.bounds import check
from pion.generation.candidates import CANDIDATES, FEW, Array, Candidates, find_candidates
from pion.generation.logit_changes import ById, Changes, change_logits

# Below every finite logit, and above those of ids that may not be drawn: they are −∞.
LOWEST = float(np.finfo(np.float64).min)


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

    @property
    def greedy(self) -> bool:
        """Whether the likeliest id is taken."""
        return self.temperature <= 0

    @property
    def cuts(self) -> bool:
        """Whether unlikely ids are left out."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    def changes(
        self,
        present: Sequence[int],
        given: int,
        vocab_size: int,
        bias: ById | None = None,
        allowed: Tensor | None = None,
    ) -> Changes:
        """Return what changes in the logits after the ids `present`, of which `given` were not
        drawn."""
        repeated: list[int] = []
        if self.repetition_penalty != 1:
            repeated = list({token for token in present if token < vocab_size})
        lowered: ById | None = None
        if self.presence_penalty != 0 or self.frequency_penalty != 0:
            drawn = Counter(present[given:])
            once, each = self.presence_penalty, self.frequency_penalty
            lowered = list(drawn), [once + each * times for times in drawn.values()]
        return Changes(vocab_size, bias, repeated, self.repetition_penalty, lowered, allowed)


@dataclass(frozen=True)
class Draw:
    """The next draw of one text: its settings, what changes its logits, and its random numbers."""

    sampling: Sampling
    changes: Changes
    randomness: torch.Generator


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
       reaches it. A text so takes as many numbers as it has drawn ids, alone or in a batch. The
       ids are in the order of their numbers. If 4 to 6 leave out none, the ids that are likelier
       than the CANDIDATES-th come before the others.

    Raises ValueError if the logits are not finite.
    """
    draw = Draw(sampling, sampling.changes(present, given, len(logits)), randomness)
    (token,) = sample_rows(logits[None], [draw])
    if token is None:
        raise ValueError("the logits are not finite")
    return token


def sample_rows(logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
    """Draw one id from each row of fp32 logits (B, vocab), as `sample` does; None for a row whose
    logits are not all finite.

    The host waits once for the device of the logits. It waits once more if the likeliest ids do
    not decide every draw. No row has an influence on the draws of another.
    """
    logits = logits.detach()
    changed = change_logits(logits, [draw.changes for draw in draws])
    samplings = [draw.sampling for draw in draws]
    greedy = [sampling.greedy for sampling in samplings]
    few = all(alone or 0 < s.top_k < FEW for s, alone in zip(samplings, greedy))
    candidates = find_candidates(
        logits,
        changed,
        count=FEW if few else CANDIDATES,
        temperatures=[1.0 if each.greedy else each.temperature for each in samplings],
        greedy=greedy,
        needs_totals=not few and any(map(_is_open, samplings)),
    )
    finite = candidates.finite.tolist()
    random = [row for row in range(len(draws)) if finite[row] and not greedy[row]]
    drawn = [
        int(candidates.best[row, 0]) if finite[row] and greedy[row] else None
        for row in range(len(draws))
    ]
    if not random:
        return drawn
    numbers = [
        torch.rand((), dtype=torch.float64, generator=draws[row].randomness).item()
        for row in random
    ]
    of_random = candidates if len(random) == len(draws) else candidates.rows(random)
    among = draw_among(of_random, [samplings[row] for row in random], numbers)
    if undecided := [index for index, token in enumerate(among) if token is None]:
        undecided_logits = torch.stack([changed[random[index]] for index in undecided]).cpu()
        for index, values in zip(undecided, undecided_logits):
            sampling = samplings[random[index]]
            floor = float(of_random.likeliest[index, -1])
            among[index] = draw_from_all(values, sampling, numbers[index], floor)
    for row, token in zip(random, among):
        drawn[row] = token
    return drawn


def draw_among(
    found: Candidates, samplings: Sequence[Sampling], numbers: Sequence[float]
) -> list[int | None]:
    """Draw an id of each row among its candidates; None: they don't decide the draw.

    `numbers` are uniform, one for each row.
    """
    settings = np.array(
        [
            (s.temperature, s.top_k, s.top_p, _least_of_min_p(s.min_p), _is_open(s))
            for s in samplings
        ]
    )
    temperature, top_k, top_p, least, open_ = settings.T
    open_ = open_ > 0
    # With a maximum of 0, logits stay finite at any small temperature.
    ordered = (found.likeliest - found.likeliest[:, :1]).astype(np.float64) / temperature[:, None]
    rows, width = np.arange(len(samplings)), ordered.shape[1]
    has_kth = (top_k > 0) & (top_k <= width)
    kth = ordered[rows, np.where(has_kth, top_k - 1, 0).astype(int)]
    # Ids that a grammar forbids have −∞. They are left out, also if fewer than `top_k` remain.
    least = np.maximum(least, np.where(has_kth, kth, LOWEST))
    # Ids that are no candidates are at most as likely as the last candidate.
    floor = np.full(len(samplings), -np.inf) if found.complete else ordered[:, -1]
    decided = least > floor
    least = np.where(decided, least, np.nextafter(floor, np.inf))

    weights = np.exp(ordered)
    weights *= ordered >= least[:, None]
    mass = weights.sum(axis=1)
    totals = found.totals[:, 0] if found.totals.size else 1.0
    total = np.where(decided, mass, np.where(open_, totals, 1.0))
    if (top_p < 1).any():
        _leave_out(weights, found, total[:, None], top_p[:, None])
        decided |= open_ & (top_p < 1) & (mass >= top_p * total)
    by_id = np.argsort(found.ids, axis=1)
    weights = weights[rows[:, None], by_id]
    cumulative = weights.cumsum(axis=1)
    end = cumulative[:, -1]
    # Without a cut, the other ids follow after the candidates.
    target = np.array(numbers) * np.where(decided, end, total)
    decided |= open_ & (top_p == 1) & (target < end)
    last = width - 1 - (weights > 0)[:, ::-1].argmax(axis=1)
    choice = np.minimum((cumulative <= target[:, None]).sum(axis=1), last)
    ids = found.ids[rows, by_id[rows, choice]]
    return [int(token) if is_decided else None for token, is_decided in zip(ids, decided)]


def draw_from_all(logits: Tensor, sampling: Sampling, number: float, floor: float) -> int:
    """Draw an id from the logits (vocab,) of the whole vocabulary, after steps 1 and 2 of `sample`.

    `floor` is the logit of the last candidate.
    """
    best = logits.max()
    logits = (logits - best).double() / sampling.temperature
    least = torch.tensor(LOWEST, dtype=torch.float64)
    if 0 < sampling.top_k < len(logits):
        least = logits.topk(sampling.top_k).values[-1].clamp(min=LOWEST)
    least = least.clamp(min=_least_of_min_p(sampling.min_p))
    ids = (logits >= least).nonzero().squeeze(1)
    probabilities = logits[ids].softmax(dim=0)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(dim=0) - ordered
        # In the order of the ids: rounding exchanges the places of ids that are as likely.
        within = order[before < sampling.top_p].sort().values
        ids, probabilities = ids[within], probabilities[within]
    elif not sampling.cuts:
        limit = (torch.tensor(floor) - best).double() / sampling.temperature
        candidate = logits[ids] > limit
        order = torch.cat((candidate.nonzero(), (~candidate).nonzero())).squeeze(1)
        ids, probabilities = ids[order], probabilities[order]
    cumulative = probabilities.cumsum(dim=0)
    index = torch.searchsorted(cumulative, number * cumulative[-1], right=True)
    return int(ids[index.clamp(max=len(ids) - 1)])


def _is_open(sampling: Sampling) -> bool:
    """Return whether the probabilities depend on the logits of all ids, or of all but a few."""
    return not sampling.greedy and sampling.top_k == 0 and sampling.min_p == 0


def _least_of_min_p(min_p: float) -> float:
    """Return the least logit that `min_p` keeps, if the likeliest id has 0."""
    return LOWEST if min_p == 0 else float(np.float32(math.log(min_p)))


def _leave_out(weights: Array, candidates: Candidates, total: Array, top_p: Array) -> None:
    """Set to 0 what `top_p` leaves out of the candidates' weights (B, count), the highest first.

    Of ids that are as likely, those with the lowest numbers remain.
    """
    shares = weights / total
    within_top_p = (shares.cumsum(axis=1) - shares < top_p) | (top_p == 1)
    # The last id that remains is as likely as the first that does not.
    tied = (
        within_top_p[:, :-1]
        & ~within_top_p[:, 1:]
        & (weights[:, :-1] == weights[:, 1:])
        & (weights[:, 1:] > 0)
    )
    for row, column in zip(*tied.nonzero()) if tied.any() else ():
        group = np.flatnonzero(weights[row] == weights[row, column])
        remaining = within_top_p[row, group].sum()
        within_top_p[row, group] = False
        within_top_p[row, group[np.argsort(candidates.ids[row, group])][:remaining]] = True
    weights *= within_top_p
