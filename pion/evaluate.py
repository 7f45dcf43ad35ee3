"""Measures a decoder: held-out loss and bits per byte, responses, multiple choice.

Every measure uses the softmax over the ids that the tokenizer can produce; embedding rows beyond
them take no probability, as in the exported model and in generation. Standard errors treat rows as
the independent units, since the tokens of one row are not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pion.data.shards import IGNORED
from pion.data.stream import Batch, RowStream, to_device
from pion.data.tokenizer import Tokenizer
from pion.errors import BadInput, PionError
from pion.model.decoder import Decoder

LOGITS_AT_ONCE = 2**25  # elements of a chunk of logits: 128 MiB in fp32


@dataclass(frozen=True)
class HeldOut:
    """How well text is predicted. Losses are in nats; a sem is a standard error of the mean."""

    loss: float  # mean over target tokens
    loss_sem: float
    perplexity: float
    bits_per_byte: float  # comparable between tokenizers
    bits_per_byte_sem: float
    tokens: int
    bytes: int  # of the text that the target tokens stand for
    rows: int


@dataclass(frozen=True)
class Responses:
    """How well the learned tokens of conversations are predicted, and whether turns end."""

    response_loss: float  # mean over learned tokens, nats
    response_loss_sem: float
    stop_accuracy: float  # of the ends of turns: how often end-of-text is the likeliest token
    stop_accuracy_sem: float
    false_stop_rate: float  # of the other learned tokens: how often end-of-text is the likeliest


@dataclass(frozen=True)
class MultipleChoice:
    """Share of questions answered right; `chance` is what guessing gets."""

    accuracy: float
    accuracy_sem: float
    chance: float
    questions: int


@dataclass(frozen=True)
class Question:
    """`context` is continued by each of `choices`; nothing is put between them."""

    context: str
    choices: tuple[str, ...]
    answer: int


# ---------------------------------------------------------------- text


def held_out(
    model: Decoder,
    stream: RowStream,
    rows: Sequence[int],
    token_bytes: np.ndarray,
    vocab_size: int,
    micro_batch: int,
    dtype: torch.dtype = torch.float32,
    *,
    on_batch: Callable[[], None] = lambda: None,
) -> HeldOut:
    """Loss of `model` on rows of `stream`; see `summarize` for `token_bytes`.

    `micro_batch` rows are computed at once, fewer after running out of CUDA memory. `on_batch` is
    called after each batch, and what it raises ends the measurement. Raises BadInput for no rows or
    targets outside `vocab_size`, PionError when one row does not fit the memory.
    """
    nll, targets, _ = _score_rows(model, stream, rows, vocab_size, micro_batch, dtype, on_batch)
    return summarize(nll, targets, token_bytes)


def summarize(nll: np.ndarray, targets: np.ndarray, token_bytes: np.ndarray) -> HeldOut:
    """Averages over the targets that are not ignored.

    `nll` (R, T) is the negative log-likelihood in nats of `targets` (R, T); `token_bytes`
    (vocab_size,) is how many bytes each id stands for, 0 for special ids: predicting an
    end-of-text costs bits and adds no bytes.
    """
    counted = targets != IGNORED
    nats = np.where(counted, nll, 0.0).sum(axis=1)
    tokens = counted.sum(axis=1)
    sizes = np.where(counted, token_bytes[np.where(counted, targets, 0)], 0).sum(axis=1)
    loss, loss_sem = ratio(nats, tokens)
    bits_per_byte, bits_per_byte_sem = ratio(nats / math.log(2), sizes)
    return HeldOut(
        loss=loss,
        loss_sem=loss_sem,
        perplexity=math.inf if loss > 700 else math.exp(loss),
        bits_per_byte=bits_per_byte,
        bits_per_byte_sem=bits_per_byte_sem,
        tokens=int(tokens.sum()),
        bytes=int(sizes.sum()),
        rows=len(nats),
    )


def ratio(amounts: np.ndarray, sizes: np.ndarray) -> tuple[float, float]:
    """Σ amounts / Σ sizes over rows, and its standard error (NaN for a single row).

    The rows are a sample of clusters of unequal size, so this is the ratio estimator and its
    linearised variance (Cochran, Sampling Techniques, 3rd ed., eq. 2.45 and 6.13).
    """
    total, rows = float(sizes.sum()), len(sizes)
    if total == 0:
        return math.nan, math.nan
    value = float(amounts.sum()) / total
    if rows < 2:
        return value, math.nan
    residuals = amounts - value * sizes
    return value, math.sqrt(rows / (rows - 1) * float((residuals**2).sum())) / total


# ---------------------------------------------------------------- conversations


def responses(
    model: Decoder,
    stream: RowStream,
    rows: Sequence[int],
    end_of_text: int,
    vocab_size: int,
    micro_batch: int,
    dtype: torch.dtype = torch.float32,
    *,
    on_batch: Callable[[], None] = lambda: None,
) -> Responses:
    """Loss and stops of `model` on the learned tokens of rows of packed conversations.

    Calls `on_batch` and raises as `held_out` does.
    """
    nll, targets, likeliest = _score_rows(
        model, stream, rows, vocab_size, micro_batch, dtype, on_batch
    )
    learned, ends = targets != IGNORED, targets == end_of_text
    stops = likeliest == end_of_text
    loss, loss_sem = ratio(nll.sum(axis=1), learned.sum(axis=1))
    accuracy, accuracy_sem = ratio((stops & ends).sum(axis=1), ends.sum(axis=1))
    inside = learned & ~ends
    false_stops, _ = ratio((stops & inside).sum(axis=1), inside.sum(axis=1))
    return Responses(loss, loss_sem, accuracy, accuracy_sem, false_stops)


# ---------------------------------------------------------------- multiple choice


def read_questions(path: Path) -> list[Question]:
    """Questions of a JSON Lines file: {"context": str, "choices": [str, …], "answer": index}.

    Raises BadInput naming file and line.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise BadInput(f"{path}: can't read these questions ({error.strerror})") from None
    questions = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                questions.append(_question(json.loads(line)))
            except json.JSONDecodeError as error:
                raise BadInput(
                    f"{path}:{number}: broken JSON at column {error.colno}: {error.msg}"
                ) from None
            except ValueError as error:
                raise BadInput(f"{path}:{number}: not a question: {error}") from None
    if not questions:
        raise BadInput(f"{path}: no question in it")
    return questions


def multiple_choice(
    model: Decoder,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    micro_batch: int,
    dtype: torch.dtype = torch.float32,
    *,
    on_batch: Callable[[], None] = lambda: None,
) -> MultipleChoice:
    """Answers with the choice of the highest log-likelihood per byte of its UTF-8 text.

    A token that straddles the border counts to the choice. Contexts too long for the model lose
    their beginning; an empty one stands for the start of a document. Choices that tie share the
    credit, so a model that knows nothing scores `chance`. The standard error is binomial.
    `micro_batch` counts rows of the model's full context; of shorter texts more are computed at
    once. Raises BadInput for a choice longer than that context; calls `on_batch` and raises
    PionError as `held_out` does.
    """
    choices = [
        _ScoredChoice.of(q.context, choice, tokenizer, model.config.seq_len)
        for q in questions
        for choice in q.choices
    ]
    longest_first = sorted(range(len(choices)), key=lambda i: -len(choices[i].ids))
    scores = np.zeros(len(choices))

    def compute(part: range) -> None:
        places = longest_first[part.start : part.stop]
        nll, _ = token_nll(
            model, _padded([choices[i] for i in places]), tokenizer.vocab_size, dtype
        )
        scores[places] = -nll.sum(dim=1).cpu().numpy() / [choices[i].bytes for i in places]

    with _evaluating(model):
        at_once = micro_batch * model.config.seq_len // len(choices[longest_first[0]].ids)
        _in_batches(len(choices), max(1, at_once), compute, on_batch)
    credit, first = [], 0
    for question in questions:
        own = scores[first : first + len(question.choices)]
        best = own == own.max()
        credit.append(float(best[question.answer]) / max(int(best.sum()), 1))
        first += len(own)
    accuracy = float(np.mean(credit))
    return MultipleChoice(
        accuracy=accuracy,
        accuracy_sem=math.sqrt(accuracy * (1 - accuracy) / len(questions)),
        chance=float(np.mean([1 / len(q.choices) for q in questions])),
        questions=len(questions),
    )


@dataclass(frozen=True)
class _ScoredChoice:
    ids: list[int]
    learned: int  # the last so many of `ids` are the choice
    bytes: int

    @classmethod
    def of(cls, context: str, choice: str, tokenizer: Tokenizer, seq_len: int) -> _ScoredChoice:
        ids, offsets = tokenizer.encode_with_offsets(context + choice)
        learned = sum(end > len(context) for _, end in offsets)
        if learned > seq_len:
            raise BadInput(
                f"the choice {choice[:60]!r}… has {learned:,} tokens, more than the model's "
                f"context of {seq_len:,}: shorten it or take the question out"
            )
        if learned == len(ids):
            ids = [tokenizer.end_of_text, *ids]
        return cls(ids[-(seq_len + 1) :], learned, len(choice.encode()))


def _padded(choices: Sequence[_ScoredChoice]) -> Batch:
    """Padded on the right, where a causal model's other tokens don't see it."""
    length = max(len(c.ids) for c in choices) - 1
    tokens = torch.zeros(len(choices), length, dtype=torch.int64)
    targets = torch.full_like(tokens, IGNORED)
    for i, choice in enumerate(choices):
        end = len(choice.ids) - 1
        tokens[i, :end] = torch.tensor(choice.ids[:-1])
        targets[i, end - choice.learned : end] = torch.tensor(choice.ids[-choice.learned :])
    return Batch(tokens, targets, None, None)


def _question(raw: object) -> Question:
    """Raises ValueError saying what is wrong."""
    if not isinstance(raw, dict):
        raise ValueError('expected {"context", "choices", "answer"}')
    missing = [key for key in ("context", "choices", "answer") if key not in raw]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    context, choices, answer = raw["context"], raw["choices"], raw["answer"]
    if not isinstance(context, str):
        raise ValueError(f"context is {context!r}; expected text")
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError(f"choices is {choices!r}; expected a list of two or more texts")
    if not all(isinstance(choice, str) and choice for choice in choices):
        raise ValueError(f"choices is {choices!r}; every choice must be a text that is not empty")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise ValueError(f"answer is {answer!r}; expected an index from 0 to {len(choices) - 1}")
    return Question(context, tuple(choices), answer)


# ---------------------------------------------------------------- scoring


def token_nll(
    model: Decoder, batch: Batch, vocab_size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood (B, T) in fp32 nats of each target, and the likeliest id (B, T).

    0 and IGNORED where the target is ignored; no logits are computed there. Logits of one chunk of
    positions exist at a time. Raises BadInput for targets outside `vocab_size`.
    """
    if int(batch.targets.max()) >= vocab_size:
        raise BadInput(
            f"id {int(batch.targets.max())} in the data is beyond the tokenizer's {vocab_size} ids"
        )
    device = next(model.parameters()).device
    batch = to_device(batch, device)
    learned = batch.targets != IGNORED
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        hidden = model.hidden(batch.tokens, positions=batch.positions, documents=batch.documents)
    head = model.embed.weight if model.config.tie_embeddings else model.lm_head.weight
    chunk = max(1, LOGITS_AT_ONCE // vocab_size)
    nll = torch.zeros(batch.targets.shape, device=device)
    likeliest = torch.full_like(batch.targets, IGNORED)
    scores, tops = [], []
    for states, targets in zip(
        hidden[learned].split(chunk), batch.targets[learned].split(chunk), strict=True
    ):
        # fp32 whatever `dtype` is: logits rounded to bf16 tie, and a tie goes to the lowest id
        logits = F.linear(states, head[:vocab_size])
        scores.append(F.cross_entropy(logits, targets, reduction="none"))
        tops.append(logits.argmax(dim=-1))
    nll[learned], likeliest[learned] = torch.cat(scores), torch.cat(tops)
    return nll, likeliest


def _score_rows(
    model: Decoder,
    stream: RowStream,
    rows: Sequence[int],
    vocab_size: int,
    micro_batch: int,
    dtype: torch.dtype,
    on_batch: Callable[[], None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Negative log-likelihoods, targets and likeliest ids of the rows, each (R, T)."""
    if not rows:
        raise BadInput("there are no held-out rows to evaluate on: raise the held_out share")
    parts: list[tuple[Tensor, Tensor, Tensor]] = []

    def compute(part: range) -> None:
        batch = stream.batch([rows[i] for i in part])
        nll, likeliest = token_nll(model, batch, vocab_size, dtype)
        parts.append((nll.cpu(), batch.targets, likeliest.cpu()))

    with _evaluating(model):
        _in_batches(len(rows), micro_batch, compute, on_batch)
    nll, targets, likeliest = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    return nll.astype(np.float64), targets, likeliest


def _in_batches(
    count: int, micro_batch: int, compute: Callable[[range], None], on_batch: Callable[[], None]
) -> None:
    """Call `compute` on consecutive parts of range(count), smaller ones when memory runs out."""
    done = 0
    while done < count:
        part = range(done, min(done + micro_batch, count))
        try:
            compute(part)
            done = part.stop
            on_batch()
            continue
        except torch.cuda.OutOfMemoryError as error:
            if len(part) == 1:
                raise PionError(
                    f"evaluation runs out of GPU memory on a single sequence ({error}). The "
                    "checkpoints are safe; free the GPU or go on where there is more memory."
                ) from None
        micro_batch = len(part) // 2  # outside `except`: the traceback holds the tensors
        torch.cuda.empty_cache()


@contextmanager
def _evaluating(model: Decoder) -> Iterator[None]:
    """No gradients, evaluation mode; the mode before is restored."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)
