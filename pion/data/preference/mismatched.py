"""Mismatched sequences: the prompt of one example with the answer of another one.

kto (Ethayarajh et al. 2024) measures on these how far a model is from its reference. Which answer a
prompt gets follows from the row and from the rows after it in its shard, in the order in which they
were written. So it does not depend on a step's other rows, on ranks, micro-batches or epochs, or on
rows that are skipped, and the reference's numbers can be kept by row, as those of the row itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pion.data.row_flags import LEARNED, PADDING, PREFERRED, STARTS
from pion.data.shards import Row, Rows, preference_row
from pion.errors import BadInput

# The rule by which answers are chosen. Another rule needs other numbers of a reference.
RULE = "mismatched 1"
# An answer to another prompt is looked for in so many rows, the row itself included.
LOOKED_AT = 64
# With more prompts without an answer of others, what is measured is of too few of them.
MOST_WITHOUT = 0.5


class Part(NamedTuple):
    """A sequence: the ids of its prompt and of its answer, and which of the answer are learned."""

    prompt: np.ndarray
    answer: np.ndarray
    learned: np.ndarray


class MismatchedRows(Rows):
    """The rows of preferences with the answers of others: row k has the prompts of row k.

    A row has at most as many sequences as the row of its prompts, and may have none. All of them
    are marked as preferred. `context` is the most tokens of a sequence.
    """

    def __init__(self, rows: Rows, context: int) -> None:
        self.manifest = rows.manifest
        self._matched, self._context = rows, context

    def row(self, shard: int, row: int) -> Row:
        """Return row `row` of shard number `shard`, with the answers of others. Raises as
        `Rows.row`."""
        self._matched.row(shard, row)  # which checks the row
        ids, flags = self._matched.arrays(shard)
        assert flags is not None
        # In pairs, a chosen answer is replaced by a chosen one, and a rejected one by a rejected
        # one. So each answer of a row is used once, and the new row is as long.
        stride = 2 if self.manifest.kind == "pairs" else 1

        @lru_cache
        def parts(number: int) -> list[Part]:
            return parts_of(ids[number], flags[number])

        order = [(row + step) % len(ids) for step in range(min(LOOKED_AT, len(ids)))]
        made = mismatched(parts, order, stride, (self._context, ids.shape[1]))
        tokens, marked = _row_of(made, ids.shape[1])
        return preference_row(tokens, marked)

    def release(self) -> None:
        """Unmap all shards."""
        self._matched.release()


def count_mismatched(sources: Iterable[Rows], context: int) -> int:
    """Return how many sequences the rows have with the answers of others. Raises BadInput."""
    count = 0
    for rows in sources:
        others = MismatchedRows(rows, context)
        for shard, own in enumerate(rows.manifest.shard_rows):
            for row in map(others.row, [shard] * own, range(own)):
                assert row.sides is not None
                count += len(row.sides)
    return count


def require_mismatched(count: int, answers: int, where: str) -> None:
    """Raise BadInput, naming `where`, if too few of the answers' prompts have those of others."""
    if answers - count > MOST_WITHOUT * answers:
        raise BadInput(
            f"{where}: kto measures how far the model is from its reference on prompts with the "
            f"answers of others, and {answers - count:,} of {answers:,} prompts have none: their "
            "neighbors have the same prompt, or answers with which they are longer than the "
            "model's context. Nothing was trained. Give preferences with more prompts, or use "
            "prefer.loss=apo-zero, which needs no such answers"
        )


def parts_of(ids: np.ndarray, flags: np.ndarray) -> list[Part]:
    """Return the sequences of a row; `ids` and `flags` are ``(seq_len,)``."""
    starts = np.flatnonzero(flags & STARTS)
    padding = np.flatnonzero(flags & PADDING)
    end = int(padding[0]) if len(padding) else len(ids)
    parts = []
    for first, stop in zip(starts, [*starts[1:], end], strict=True):
        learned = (flags[first:stop] & LEARNED) != 0
        begins = first + int(learned.argmax())
        parts.append(Part(ids[first:begins], ids[begins:stop], learned[begins - first :]))
    return parts


def mismatched(
    parts: Callable[[int], Sequence[Part]],
    order: Sequence[int],
    stride: int,
    most: tuple[int, int],
) -> list[Part]:
    """Return the sequences of a row, each with the answer of the next one that it can have.

    The next ones are those after it in its row, those before it, and those of the rows that follow,
    in steps of `stride`. A sequence can have the answer to another prompt with which it is not
    longer than the context, and with which the row is not too long. A sequence without such an
    answer is left out.

    Args:
        parts: returns the sequences of a row.
        order: the number of the row, and of those that follow it.
        most: the tokens of a context, and of a row.
    """
    own, made, (context, room) = parts(order[0]), [], most
    for place, one in enumerate(own):
        for other in _candidates(parts, order, stride, place):
            length = len(one.prompt) + len(other.answer)
            if length <= min(context, room) and not np.array_equal(one.prompt, other.prompt):
                made.append(Part(one.prompt, other.answer, other.learned))
                room -= length
                break
    return made


def _candidates(
    parts: Callable[[int], Sequence[Part]], order: Sequence[int], stride: int, place: int
) -> Iterator[Part]:
    """Yield the sequences whose answers a sequence may have, the next one first."""
    own = parts(order[0])
    for step in range(stride, len(own), stride):
        yield own[(place + step) % len(own)]
    for number in order[1:]:
        yield from parts(number)[place % stride :: stride]


def _row_of(made: Sequence[Part], seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids and the flags of a row. Its padding has the id 0, which no result sees."""
    tokens = np.zeros(seq_len, dtype=np.int64)
    flags = np.full(seq_len, PADDING, dtype=np.uint8)
    start = 0
    for prompt, answer, learned in made:
        begins, stop = start + len(prompt), start + len(prompt) + len(answer)
        tokens[start:stop] = np.concatenate([prompt, answer])
        flags[start:begins], flags[begins:stop] = 0, learned * np.uint8(LEARNED)
        flags[start] |= STARTS | PREFERRED
        start = stop
    return tokens, flags
