"""Measure a decoder on rows of token ids: held-out loss, bits per byte, responses and calibration.

Every measure uses the softmax over the ids that the tokenizer can produce. Embedding rows beyond
these ids get no probability, as in the exported model and in generation. Standard errors treat
documents as the independent units: neither the tokens nor the rows of one document are independent.
Where there is only one document, its rows are the units.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from pion.data.shards import IGNORED
from pion.data.stream import Batch, to_device
from pion.errors import BadInput, PionError
from pion.evaluation.item_scores import Numbers, with_errors
from pion.evaluation.shares import plain_mean, ratio, share_ratio
from pion.model.decoder import Decoder

# Elements in a chunk of logits: 128 MiB in fp32.
LOGITS_AT_ONCE = 2**25


class Batches(Protocol):
    """Rows by their numbers, such as a `RowStream`."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the rows with these numbers, in this order."""

    def document_numbers(self, indices: Sequence[int], end_of_text: int) -> np.ndarray:
        """Return the number of the document of each target of these rows, (R, T)."""


@dataclass(frozen=True)
class Scorer:
    """A model to measure, and how to compute its predictions."""

    model: Decoder
    vocab_size: int  # number of ids that the tokenizer can produce; they share the probability
    micro_batch: int  # rows computed at once
    dtype: torch.dtype = torch.float32  # of the hidden states; logits are always fp32
    on_batch: Callable[[], None] = lambda: None  # called after each batch; may end the measurement


@dataclass(frozen=True)
class Scores:
    """What a model predicts on R rows of T tokens. Each array is (R, T).

    Attributes:
        nll: the negative log-likelihood of each target, in nats; 0 where a target is ignored.
        targets: the next tokens; IGNORED where nothing is predicted.
        likeliest: the likeliest id of each place; IGNORED where nothing is predicted.
        confidence: the probability of the likeliest id; 0 where nothing is predicted.
    """

    nll: np.ndarray
    targets: np.ndarray
    likeliest: np.ndarray
    confidence: np.ndarray


@dataclass(frozen=True)
class Evaluation:
    """A mean over target tokens. Tokens and rows of one document are not independent, so documents
    are the sample, or the rows of a single document. Of preferences, it is a mean over pairs or
    single answers, and `measures` has their accuracy and margin. Of several sources, it is the
    plain mean of their losses, which are `by_source`."""

    loss: float  # nats per target token, or the mean loss of preferences
    sem: float  # standard error of `loss`; NaN for a single row
    tokens: int  # target tokens
    rows: int
    measures: Mapping[str, float] = field(default_factory=dict)
    by_source: Mapping[str, float] = field(default_factory=dict)


def mean_of_sources(found: Mapping[str, Evaluation]) -> Evaluation:
    """Return the plain mean of what was measured on each source."""
    loss, sem = plain_mean([(evaluation.loss, evaluation.sem) for evaluation in found.values()])
    return Evaluation(
        loss,
        sem,
        tokens=sum(evaluation.tokens for evaluation in found.values()),
        rows=sum(evaluation.rows for evaluation in found.values()),
        by_source={name: evaluation.loss for name, evaluation in found.items()},
    )


def summarize(
    nll: np.ndarray, targets: np.ndarray, token_bytes: np.ndarray, documents: np.ndarray
) -> Numbers:
    """Return HELD_OUT (pion/measures.py) of the targets that are not ignored: averages over them.

    `nll` (R, T) is the negative log-likelihood in nats of `targets` (R, T), and `documents` (R, T)
    the number of the document of each. `token_bytes` (vocab_size,) is the number of bytes of each
    id, 0 for special ids: predicting an end-of-text costs bits and adds no bytes. If the tokenizer
    normalizes a text (`Tokenizer.normalization`, Qwen's NFC), the bytes are those of the normalized
    text: the model never sees another.
    """
    counted = targets != IGNORED
    nats, tokens, sizes = by_document(
        documents, counted, nll, counted, target_bytes(targets, token_bytes)
    )
    losses, bits = ratio(nats, tokens), ratio(nats / math.log(2), sizes)
    return _held_out(losses, bits, int(tokens.sum()), int(sizes.sum()), len(targets))


def mean_held_out(sources: Sequence[Numbers]) -> Numbers:
    """Return the plain mean of what was measured on several sources."""
    loss, bits = (
        plain_mean([(source[name], source[f"{name}_sem"]) for source in sources])
        for name in ("loss", "bits_per_byte")
    )
    counts = (int(sum(source[name] for source in sources)) for name in ("tokens", "bytes", "rows"))
    return _held_out(loss, bits, *counts)


def _held_out(
    loss: tuple[float, float], bits: tuple[float, float], tokens: int, size: int, rows: int
) -> Numbers:
    return {
        **with_errors({"loss": loss}),
        "perplexity": math.inf if loss[0] > 700 else math.exp(loss[0]),
        **with_errors({"bits_per_byte": bits}),
        "tokens": tokens,
        "bytes": size,
        "rows": rows,
    }


def target_bytes(targets: np.ndarray, token_bytes: np.ndarray) -> np.ndarray:
    """Return the bytes of each of `targets` (R, T); `token_bytes` as in `summarize`."""
    counted = targets != IGNORED
    return np.where(counted, token_bytes[np.where(counted, targets, 0)], 0)


def by_document(
    documents: np.ndarray, counted: np.ndarray, *amounts: np.ndarray
) -> list[np.ndarray]:
    """Return the sums of each of `amounts` (R, T) over each document's `counted` targets.

    Where all targets are of one document, the sums are those of the rows.
    """
    numbers, places = np.unique(documents[counted], return_inverse=True)
    if len(numbers) < 2:
        return [np.where(counted, amount, 0).sum(axis=1) for amount in amounts]
    return [np.bincount(places.ravel(), amount[counted]) for amount in amounts]


def summarize_responses(scores: Scores, end_of_turn: int, documents: np.ndarray) -> Numbers:
    """Return RESPONSES (pion/measures.py): how well the learned tokens of packed conversations were
    predicted.

    `end_of_turn` is the id that ends an answer (`ChatFormat.end_of_turn`). `documents` (R, T) has
    the number of the conversation of each target (`document_numbers`).
    """
    learned, ends = scores.targets != IGNORED, scores.targets == end_of_turn
    stops = scores.likeliest == end_of_turn
    inside = learned & ~ends
    nats, tokens, right, turns, early, others = by_document(
        documents, learned, scores.nll, learned, stops & ends, ends, stops & inside, inside
    )
    measured = {"response_loss": ratio(nats, tokens), "stop_accuracy": share_ratio(right, turns)}
    return {
        **with_errors(measured),
        "false_stop_rate": ratio(early, others)[0],
        "ends": int(turns.sum()),
        "others": int(others.sum()),
    }


def token_nll(
    model: Decoder, batch: Batch, vocab_size: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return each target's negative log-likelihood, the likeliest id and its probability, (B, T).

    Likelihoods are fp32 nats, and probabilities fp32. No logits are computed for ignored targets;
    their results are 0, IGNORED and 0. Only one chunk of logits exists at a time.

    Raises BadInput if a target is outside `vocab_size`.
    """
    if int(batch.targets.max()) >= vocab_size:
        raise BadInput(
            f"id {int(batch.targets.max())} in the data is beyond the tokenizer's {vocab_size} ids"
        )
    device = next(model.parameters()).device
    # The rows with a target are found before the copy to the device. Finding them on a GPU would
    # make us wait for the GPU.
    learned = (batch.targets != IGNORED).flatten().nonzero().flatten()
    learned = learned.to(device, non_blocking=True)
    batch = to_device(batch, device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        hidden = model.hidden(batch.tokens, positions=batch.positions, documents=batch.documents)
    chunk = max(1, LOGITS_AT_ONCE // vocab_size)
    targets = batch.targets.flatten()
    nll = torch.zeros(targets.shape, device=device)
    likeliest, confidence = torch.full_like(targets, IGNORED), torch.zeros_like(nll)
    states = hidden.flatten(0, 1)[learned].split(chunk)
    for state, places in zip(states, learned.split(chunk), strict=True):
        # In fp32 even if `dtype` is bf16: rounded logits tie, and a tie goes to the lowest id.
        logits = model.logits_in_fp32(state, vocab_size)
        target, top = targets[places], logits.argmax(dim=-1)
        nats = F.cross_entropy(logits, target, reduction="none")
        # The likeliest id and the target share the softmax's denominator: no second pass over it.
        pair = logits.gather(1, torch.stack((top, target), dim=1))
        nll[places], likeliest[places] = nats, top
        confidence[places] = (pair[:, 0] - pair[:, 1] - nats).clamp(max=0).exp()
    shape = batch.targets.shape
    return nll.view(shape), likeliest.view(shape), confidence.view(shape)


def score(scorer: Scorer, stream: Batches, rows: Sequence[int]) -> Scores:
    """Return what the scorer's model predicts on the given rows of `stream`.

    After running out of CUDA memory, fewer than `micro_batch` rows are computed at once.

    Raises:
        BadInput: there are no rows, or a target is outside `vocab_size`.
        PionError: not even one row fits in the GPU's memory.
    """
    if not rows:
        raise BadInput("there are no held-out rows to evaluate on: raise the held_out share")
    parts: list[tuple[Tensor, ...]] = []
    _score_batches(scorer, stream, rows, lambda _, *scores: parts.append(scores))
    columns = zip(*parts, strict=True)
    nll, targets, likeliest, confidence = (torch.cat(column).numpy() for column in columns)
    return Scores(nll.astype(np.float64), targets, likeliest, confidence.astype(np.float64))


@torch.inference_mode()
def evaluate(
    scorer: Scorer,
    stream: Batches,
    rows: range,
    end_of_text: int,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Evaluation:
    """Return the loss of the scorer's model on the given rows of `stream`, split over ranks.

    `end_of_text` is the id that ends a document. With several ranks, each rank computes its share,
    and all ranks get the whole result. The model's train or evaluation mode is restored. Raises
    BadInput if the rows have no target, and what `score` raises.
    """
    # On the host: consumer GPUs and the A40 compute fp64 at 1/64 of their fp32 speed.
    by_row = torch.zeros(2, len(rows), dtype=torch.float64)  # nats, and target tokens
    documents = torch.from_numpy(stream.document_numbers(rows, end_of_text))
    by_document = by_row.new_zeros(2, int(documents.max()) + 1 if len(rows) else 0)
    mine = range(len(rows))[rank::world_size]

    def add(part: range, nll: Tensor, targets: Tensor, *_: Tensor) -> None:
        places = list(mine[part.start : part.stop])
        found = torch.stack((nll, targets != IGNORED)).double()
        by_row[:, places] = found.sum(dim=2)
        by_document.index_add_(1, documents[places].flatten(), found.flatten(1))

    _score_batches(scorer, stream, [rows[i] for i in mine], add)
    if scorer.model.sharded and lacks_a_batch(len(rows), rank, world_size, scorer.micro_batch):
        _score_batches(scorer, stream, rows[:1], lambda *_: None)
    if world_size > 1:
        sums = torch.cat((by_row, by_document), dim=1).to(next(scorer.model.parameters()).device)
        dist.all_reduce(sums)
        by_row, by_document = sums.cpu().split((len(rows), by_document.shape[1]), dim=1)
    if not by_row[1].any():
        raise BadInput(f"none of the {len(rows)} held-out rows has a token to predict")
    loss, sem = ratio(*by_row.numpy())
    learned = by_document[:, by_document[1] > 0]
    if learned.shape[1] > 1:
        _, sem = ratio(*learned.numpy())
    return Evaluation(loss=loss, sem=sem, tokens=int(by_row[1].sum()), rows=len(rows))


def _score_batches(
    scorer: Scorer, stream: Batches, rows: Sequence[int], keep: Callable[..., None]
) -> None:
    """Call `keep(part, nll, targets, likeliest, confidence)` for batch after batch of the rows.

    `part` has the places of the batch's rows in `rows`. The tensors are those of `Scores`, on the
    CPU.
    """

    def compute(part: range) -> None:
        batch = stream.batch([rows[i] for i in part])
        scores = token_nll(scorer.model, batch, scorer.vocab_size, scorer.dtype)
        # In one copy, so that we wait for the GPU only once. Ids below 2**24 are exact in fp32.
        nll, ids, confidence = torch.stack([each.float() for each in scores]).cpu()
        keep(part, nll, batch.targets, ids.long(), confidence)

    with evaluating(scorer.model):
        in_batches(
            len(rows), scorer.micro_batch, compute, scorer.on_batch, fixed=scorer.model.sharded
        )


def lacks_a_batch(rows: int, rank: int, world_size: int, micro_batch: int) -> bool:
    """Return whether this rank has a batch less than rank 0 of `rows` rows, dealt out in turn.

    The ranks of a sharded model compute together, so it computes one that does not count.
    """
    most, rows_here = len(range(0, rows, world_size)), len(range(rank, rows, world_size))
    return -(-rows_here // micro_batch) < -(-most // micro_batch)


def in_batches(
    count: int,
    micro_batch: int,
    compute: Callable[[range], None],
    on_batch: Callable[[], None],
    *,
    fixed: bool = False,
) -> None:
    """Call `compute` on consecutive parts of range(count), and `on_batch` after each.

    Parts become smaller after running out of CUDA memory, unless they are `fixed`. Raises PionError
    if even a single item does not fit, or a fixed part.
    """
    done = 0
    while done < count:
        part = range(done, min(done + micro_batch, count))
        try:
            compute(part)
            done = part.stop
            on_batch()
            continue
        except torch.cuda.OutOfMemoryError as error:
            if len(part) == 1 or fixed:
                amount = "a single sequence" if len(part) == 1 else f"{len(part)} sequences"
                raise PionError(
                    f"evaluation ran out of GPU memory on {amount} ({error}). The "
                    "checkpoints are safe. Free GPU memory, or continue on a larger GPU."
                ) from None
        micro_batch = len(part) // 2  # outside `except`: its traceback keeps the tensors alive
        torch.cuda.empty_cache()


@contextmanager
def evaluating(model: Decoder) -> Iterator[None]:
    """Turn off gradients and turn on evaluation mode; restore the model's mode afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


# ---------------------------------------------------------------- calibration

# Does a model know what it knows? A model is calibrated if, of all tokens that it gives a
# probability of 70 %, it gets 70 % right. Calibration says nothing about how much a model knows:
# one that always answers with the frequencies of the language is calibrated, too.


BINS = 15
# The bin of the example: with 15 bins, its middle is 70 %.
EXAMPLE = 10


def calibrate(scores: Scores, documents: np.ndarray) -> dict[str, Any]:
    """Return CALIBRATION (pion/measures.py) of what a model predicts. `near_70` has NEAR_70, an
    example; None if there are no such tokens. `documents` are as in `summarize`.
    """
    counted = scores.targets != IGNORED
    confidence, right = scores.confidence, (scores.likeliest == scores.targets).astype(np.float64)
    excess = confidence - right
    # A probability that is not a number is in the first bin.
    bins = np.clip(np.nan_to_num(confidence) * BINS, 0, BINS - 1).astype(np.int64)
    # Σ |excess of a bin| is a sum over tokens once each bin's sign is known, so the standard error
    # of a ratio holds for it.
    signs = np.sign(np.bincount(bins[counted], excess[counted], BINS))
    example = bins == EXAMPLE
    of_all = (confidence, right, excess**2, signs[bins] * excess, counted)
    of_example = (confidence * example, right * example, example)
    sure, hits, squares, distance, tokens, said, correct, some = by_document(
        documents, counted, *of_all, *of_example
    )
    near_70 = {
        "confidence": ratio(said, some)[0],
        **with_errors({"accuracy": share_ratio(correct, some)}),
        "tokens": int(some.sum()),
    }
    measured = {
        "ece": ratio(distance, tokens),
        "brier": ratio(squares, tokens),
        "confidence": ratio(sure, tokens),
        "accuracy": share_ratio(hits, tokens),
    }
    return {
        **with_errors(measured),
        "near_70": near_70 if near_70["tokens"] else None,
        "tokens": int(tokens.sum()),
    }
