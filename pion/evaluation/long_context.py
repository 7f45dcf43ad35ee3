"""What a longer context is worth: on text with more context, and on text that repeats itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pion.data.shards import IGNORED
from pion.data.stream import RowStream
from pion.evaluation.held_out import Scorer, Scores, by_document, score, target_bytes
from pion.evaluation.item_scores import with_errors
from pion.evaluation.one_text_per_row import OwnRows
from pion.evaluation.shares import ratio

# Of fewer tokens, the worth of the context is not measured.
FEWEST_TOKENS = 10_000
# Tokens that are copied, and the shortest distance between them and their copy.
COPIED, NEAREST = 64, 256


def long_context(
    scorer: Scorer,
    stream: RowStream,
    rows: Sequence[int],
    short: int,
    token_bytes: np.ndarray,
    end_of_text: int,
) -> dict[str, Any]:
    """Return what a context of more than `short` tokens is worth on rows of L tokens.

    Documents are the units of the standard errors. `token_bytes` are as in `summarize`. The result
    has, each with its standard error `…_sem`:

    - `short_loss`: the loss in nats of the first `short` tokens of rows.
    - `worth`: how many bits per byte the same tokens need more if at most `short` tokens before
      them are seen (windows that overlap by half). Only those `tokens` count that have more than
      `short` tokens of their own document before them in the row. NaN if they are fewer than
      FEWEST_TOKENS.
    - `by_distance`: the same of the tokens with more than n to at most 2n before them, by n.
    - `copies`: by the distance, how many bits a token saves where a text is read a second time.
    """
    documents = stream.document_numbers(rows, end_of_text)
    scores = score(scorer, stream, rows)
    tokens = np.stack([stream.row(i).tokens for i in rows])
    before = np.where(scores.targets == IGNORED, 0, _tokens_before(documents))
    counted, worth = int((before > short).sum()), (math.nan, math.nan)
    by_distance: dict[str, tuple[float, float]] = {}
    if counted >= FEWEST_TOKENS:
        worth, by_distance = _worth(scorer, scores, (tokens, documents, before), short, token_bytes)
    begun = scores.targets[:, :short] != IGNORED
    loss = ratio(*by_document(documents[:, :short], begun, scores.nll[:, :short], begun))
    copies = {
        str(NEAREST << n): _copied(scorer, tokens, documents[:, 0], NEAREST << n)
        for n in range(32)
        if len(rows) > 1 and (NEAREST << n) + 2 * COPIED <= tokens.shape[1]
    }
    return {
        **with_errors({"short_loss": loss, "worth": worth}),
        "tokens": counted,
        "by_distance": {at: with_errors({"bits": bits}) for at, bits in by_distance.items()},
        "copies": {at: with_errors({"bits": bits}) for at, bits in copies.items()},
    }


def _tokens_before(documents: np.ndarray) -> np.ndarray:
    """Return how many tokens of its document each target (R, L) has before it in its row."""
    position = np.arange(documents.shape[1])
    begins = np.diff(documents, axis=1, prepend=-1) != 0
    return position - np.maximum.accumulate(np.where(begins, position, 0), axis=1) + 1


def _worth(
    scorer: Scorer,
    scores: Scores,
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
    short: int,
    token_bytes: np.ndarray,
) -> tuple[tuple[float, float], dict[str, tuple[float, float]]]:
    """Return `worth` and `by_distance` of `long_context`, from the tokens of rows, their documents
    and how many tokens are before each target."""
    tokens, documents, before = rows

    def windows(array: np.ndarray) -> np.ndarray:
        """Return the windows of `short` tokens that overlap by half, (windows, short)."""
        cut = np.lib.stride_tricks.sliding_window_view(array, short, axis=1)
        return cut[:, :: short // 2].reshape(-1, short)

    # The first half of a window is the second half of the one before, with more context there.
    scored = (windows(before) > short) & (np.arange(short) >= short // 2)
    chosen = np.flatnonzero(scored.any(axis=1))
    # Before these targets, a window has no other document, so that none must be masked.
    targets = np.where(scored, windows(scores.targets), IGNORED)[chosen]
    less = score(scorer, OwnRows(windows(tokens)[chosen], targets, chosen), range(len(chosen)))
    bits = (less.nll - windows(scores.nll)[chosen]) / math.log(2)
    sizes = target_bytes(targets, token_bytes)
    units, context = windows(documents)[chosen], np.where(scored, windows(before), 0)[chosen]

    def between(low: int, high: int) -> tuple[float, float]:
        return ratio(*by_document(units, (context > low) & (context <= high), bits, sizes))

    ends = [short << n for n in range(32) if (context > short << n).any()]
    return between(short, tokens.shape[1]), {str(n): between(n, 2 * n) for n in ends}


def _copied(
    scorer: Scorer, tokens: np.ndarray, documents: np.ndarray, distance: int
) -> tuple[float, float]:
    """Return how many bits a token of the beginning of each row saves the second time, with so many
    tokens of another row between."""
    first, other = tokens[:, :COPIED], np.roll(tokens, 1, axis=0)[:, COPIED : COPIED + distance]
    ids = np.concatenate((first, other, first), axis=1)
    targets, same = ids[:, 1:].copy(), COPIED - 1  # nothing precedes the first token of all
    targets[:, same:-same] = IGNORED
    nll = score(scorer, OwnRows(ids[:, :-1], targets, documents), range(len(ids))).nll
    saved = (nll[:, :same] - nll[:, -same:]).sum(axis=1) / math.log(2)
    _, units = np.unique(documents, return_inverse=True)
    return ratio(np.bincount(units, saved), np.bincount(units) * same)
