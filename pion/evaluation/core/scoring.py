"""Compute a model's answers to the items of a task.

The rows of up to ITEMS_AT_ONCE items are computed together, from the longest to the shortest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pion.data.shards import IGNORED
from pion.data.tokens.tokenizer import Tokenizer
from pion.evaluation.core.bundle import Task
from pion.evaluation.core.rows import ItemRows, TokenRow, ask
from pion.evaluation.held_out import LOGITS_AT_ONCE, Scorer, evaluating, token_nll
from pion.evaluation.multiple_choice import longest_first, scored_ends

# Enough to fill a GPU with rows of similar length.
ITEMS_AT_ONCE = 512
# Few items of CORE are longer. A batch for a context of 131,072 tokens would not fit many machines.
USUAL_ROW = 2048
# What `Answer.choice` is where several options tie, or none was scored.
NO_CHOICE = -1


@dataclass(frozen=True)
class Answer:
    """A model's answer to an item.

    Attributes:
        asked: the item as rows.
        nats: the mean negative log-likelihood of each option's scored tokens; () if unscored.
        choice: the option with the fewest nats, or NO_CHOICE. In language_modeling, 0 if the model
            would write the whole continuation, or NO_CHOICE.
        credit: 1 for the right answer, 1/k if k options tie and one of them is right, otherwise 0.
        tied: whether several options have the fewest nats.
        finite: whether all nats are finite. If not, `credit` means nothing.
    """

    asked: ItemRows
    nats: tuple[float, ...]
    choice: int
    credit: float
    tied: bool = False
    finite: bool = True


def answer_task(
    scorer: Scorer,
    tokenizer: Tokenizer,
    task: Task,
    count: int,
    on_items: Callable[[int], None] = lambda _: None,
) -> list[Answer]:
    """Return the answers to the first `count` items of a task.

    `on_items` is called with the number of items that are answered. The scorer's `micro_batch`
    counts rows of the model's full context, or of USUAL_ROW tokens if the context is longer. More
    of the shorter rows are computed at once, and fewer after running out of CUDA memory.

    Raises PionError if not even one row fits in the GPU's memory.
    """
    answers: list[Answer] = []
    with evaluating(scorer.model):
        for first in range(0, count, ITEMS_AT_ONCE):
            numbers = range(first, min(first + ITEMS_AT_ONCE, count))
            items = ask(task, numbers, tokenizer, scorer.model.config.seq_len)
            scores = iter(_score_rows(scorer, [row for item in items for row in item.rows]))
            for number, item in zip(numbers, items, strict=True):
                answers.append(_answer(task, number, item, [next(scores) for _ in item.rows]))
            on_items(len(answers))
    return answers


@dataclass(frozen=True)
class _Scored:
    """Mean nats of a row's tokens, or of each candidate, and whether all its tokens are greedy."""

    nats: tuple[float, ...]
    greedy: bool


# Scores rows: `_continuations` or `_candidates`.
_Compute = Callable[[Scorer, Sequence[TokenRow]], list[_Scored]]


def _answer(task: Task, number: int, item: ItemRows, rows: Sequence[_Scored]) -> Answer:
    if item.unscored:
        return Answer(item, (), NO_CHOICE, 0.0)
    nats = tuple(rows[row].nats[candidate] for row, candidate in item.place)
    finite = bool(np.isfinite(nats).all())
    if task.task_type == "language_modeling":
        right = finite and rows[0].greedy
        return Answer(item, nats, 0 if right else NO_CHOICE, float(right), finite=finite)
    if not finite:
        return Answer(item, nats, NO_CHOICE, 0.0, finite=False)
    best = [option for option, option_nats in enumerate(nats) if option_nats == min(nats)]
    credit = 1 / len(best) if task.items[number].gold in best else 0.0
    tied = len(best) > 1
    return Answer(item, nats, NO_CHOICE if tied else best[0], credit, tied=tied)


def _score_rows(scorer: Scorer, rows: Sequence[TokenRow]) -> list[_Scored]:
    """Return the scores of the rows, in their order."""
    scores: dict[int, _Scored] = {}

    def score(compute: _Compute, kind: Sequence[int], part: Sequence[int]) -> None:
        places = [kind[i] for i in part]
        scores.update(zip(places, compute(scorer, [rows[i] for i in places]), strict=True))

    row = min(scorer.model.config.seq_len, USUAL_ROW)
    for compute in (_continuations, _candidates):
        with_candidates = compute is _candidates
        kind = [i for i, row in enumerate(rows) if bool(row.candidates) == with_candidates]
        if kind:
            lengths = [len(rows[i].ids) for i in kind]
            longest_first(scorer, lengths, row, partial(score, compute, kind))
    return [scores[i] for i in range(len(rows))]


def _continuations(scorer: Scorer, rows: Sequence[TokenRow]) -> list[_Scored]:
    """Return the mean nats of each row's tokens from its start on."""
    batch = scored_ends([(row.ids, len(row.ids) - row.start) for row in rows])
    token_scores = token_nll(scorer.model, batch, scorer.vocab_size, scorer.dtype)
    # In one copy, so that we wait for the GPU only once. Ids below 2**24 are exact in fp32.
    nll, likeliest = torch.stack([each.float() for each in token_scores[:2]]).cpu()
    # Sums in fp64 do not depend on the padding of a row.
    means = nll.double().sum(dim=1).numpy() / [len(row.ids) - row.start for row in rows]
    greedy = (likeliest.long() == batch.targets).logical_or(batch.targets == IGNORED).all(dim=1)
    return [
        _Scored((float(mean),), bool(is_greedy))
        for mean, is_greedy in zip(means, greedy.tolist(), strict=True)
    ]


def _candidates(scorer: Scorer, rows: Sequence[TokenRow]) -> list[_Scored]:
    """Return the nats of each row's candidates as the token after the row."""
    model = scorer.model
    device = next(model.parameters()).device
    # On the right, so that no token sees padding.
    tokens = pad_sequence([torch.from_numpy(row.ids).long() for row in rows], batch_first=True)
    last = torch.tensor([len(row.ids) - 1 for row in rows], device=device)
    with torch.autocast(device.type, dtype=scorer.dtype, enabled=scorer.dtype != torch.float32):
        hidden = model.hidden(tokens.to(device))
    states = hidden[torch.arange(len(rows), device=device), last]
    of_row = torch.tensor([i for i, row in enumerate(rows) for _ in row.candidates], device=device)
    every = torch.tensor([each for row in rows for each in row.candidates], device=device)
    nats: list[Tensor] = []
    # Each chunk of logits has a copy for each candidate.
    chunk = max(1, LOGITS_AT_ONCE // scorer.vocab_size)
    for positions, wanted in zip(of_row.split(chunk), every.split(chunk), strict=True):
        logits = model.logits_in_fp32(states[positions], scorer.vocab_size)
        nats.append(F.cross_entropy(logits, wanted, reduction="none"))
    scores = iter(torch.cat(nats).double().tolist())
    return [_Scored(tuple(next(scores) for _ in row.candidates), greedy=False) for row in rows]
