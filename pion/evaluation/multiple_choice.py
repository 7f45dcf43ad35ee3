"""Measure a decoder on multiple-choice questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pion.data.shards import IGNORED
from pion.data.stream import Batch
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.evaluation.held_out import Scorer, evaluating, in_batches, token_nll
from pion.evaluation.item_scores import Scored
from pion.evaluation.questions import Question
from pion.evaluation.shares import share_sem

# The most tokens computed at once, whatever context the model claims: twice a full GPU's.
TOKENS_AT_ONCE = 2**17


def multiple_choice(scorer: Scorer, tokenizer: Tokenizer, questions: Sequence[Question]) -> Scored:
    """Answer each question with the choice of the highest log-likelihood per byte of its text, and
    return CHOICES (pion/measures.py).

    A token that spans the border between context and choice belongs to the choice. A context that
    is too long for the model loses its beginning; an empty context means the start of a document.
    A document starts with the tokenizer's first token, if it has one.
    Choices that tie share the credit, so a model that knows nothing scores `chance`. The standard
    error is binomial; see `share_sem`.

    The scorer's `micro_batch` counts rows of the model's full context. More of the shorter texts
    are computed at once; after running out of CUDA memory, fewer are.

    Raises:
        BadInput: a choice is longer than the model's context.
        PionError: not even one text fits in the GPU's memory.
    """
    model = scorer.model
    choices = [
        _ScoredChoice.of(q.context, choice, tokenizer, model.config.seq_len)
        for q in questions
        for choice in q.choices
    ]
    scores = np.zeros(len(choices))

    def compute(places: Sequence[int]) -> None:
        batch = scored_ends([(choices[i].ids, choices[i].learned) for i in places])
        nll, *_ = token_nll(model, batch, scorer.vocab_size, scorer.dtype)
        scores[places] = -nll.sum(dim=1).cpu().numpy() / [choices[i].bytes for i in places]

    with evaluating(model):
        lengths = [len(choice.ids) for choice in choices]
        longest_first(scorer, lengths, model.config.seq_len, compute)
    ends = np.cumsum([len(question.choices) for question in questions])
    best = [
        question_scores == question_scores.max() for question_scores in np.split(scores, ends[:-1])
    ]
    credit = [
        float(question_scores[q.answer]) / max(int(question_scores.sum()), 1)
        for q, question_scores in zip(questions, best)
    ]
    accuracy = float(np.mean(credit))
    record = {
        "accuracy": accuracy,
        "accuracy_sem": share_sem(accuracy, len(questions)),
        "chance": float(np.mean([1 / len(q.choices) for q in questions])),
        "questions": len(questions),
    }
    return Scored(record, np.array(credit))


def longest_first(
    scorer: Scorer, lengths: Sequence[int], row: int, compute: Callable[[Sequence[int]], None]
) -> None:
    """Call `compute` with the places of some rows of these lengths, until it had all rows.

    As many tokens are computed at once as in `micro_batch` rows of `row` tokens, and fewer after
    running out of CUDA memory. Raises PionError if even a single row does not fit.
    """
    places = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    tokens = min(scorer.micro_batch * row, TOKENS_AT_ONCE)
    at_once = max(1, tokens // lengths[places[0]])
    in_batches(
        len(places),
        at_once,
        lambda part: compute(places[part.start : part.stop]),
        scorer.on_batch,
    )


@dataclass(frozen=True)
class _ScoredChoice:
    ids: list[int]
    learned: int  # how many of `ids`, counted from the end, are the choice
    bytes: int

    @classmethod
    def of(cls, context: str, choice: str, tokenizer: Tokenizer, seq_len: int) -> _ScoredChoice:
        ids, offsets = tokenizer.encode_with_offsets(context + choice)
        learned = sum(end > len(context) for _, end in offsets)
        if learned > seq_len:
            raise BadInput(
                f"the choice {choice[:60]!r}… has {learned:,} tokens, more than the model's "
                f"context of {seq_len:,}: shorten the choice or remove the question"
            )
        bare = learned == len(ids)  # no token is of the context alone
        ids = [tokenizer.before_document, *ids] if bare else tokenizer.start_document(ids)
        return cls(ids[-(seq_len + 1) :], learned, len(choice.encode()))


def scored_ends(rows: Sequence[tuple[Sequence[int] | np.ndarray, int]]) -> Batch:
    """Return rows of ids as one batch, padded on the right, so that no token sees padding.

    Of each row, only its last tokens are targets: as many as the number next to its ids.
    """
    tokens = torch.zeros(len(rows), max(len(ids) for ids, _ in rows) - 1, dtype=torch.int64)
    targets = torch.full_like(tokens, IGNORED)
    for i, (ids, scored) in enumerate(rows):
        row, end = torch.as_tensor(ids), len(ids) - 1
        tokens[i, :end] = row[:-1]
        targets[i, end - scored : end] = row[-scored:]
    return Batch(tokens, targets, None, None)
