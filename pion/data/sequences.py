"""The answers in rows of preferences: which side each is on, and sums over its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pion.errors import BadInput


@dataclass(frozen=True)
class Sequences:
    """The sequences of some rows, each (B, S). S is a power of two; the last may be no sequences.

    Sequence k of a row is document k of the row: a prompt and an answer. In rows of pairs,
    sequences 2i and 2i + 1 are the chosen and the rejected answer to one prompt.

    Attributes:
        reference: what the reference model gives for `sequence_sums`, in nats, fp64.
        tokens: how many targets the sequence has, int64.
        side: 1 (chosen or desired), −1 (rejected or undesired) or 0 (no sequence), int8.
    """

    reference: Tensor
    tokens: Tensor
    side: Tensor

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Sequences:
        """Return the sequences with ``function`` applied to each of the tensors."""
        return Sequences(function(self.reference), function(self.tokens), function(self.side))


def columns_for(most: int, *, paired: bool) -> int:
    """Return S for rows with at most so many sequences: a power of two, and even for pairs."""
    return 1 << max(most - 1, 1 if paired else 0).bit_length()


def sequences_of_rows(
    sides: Sequence[Sequence[int]],
    documents: Tensor,
    learned: Tensor,
    reference: Sequence[Sequence[float]] | None = None,
    *,
    paired: bool,
) -> Sequences:
    """Return the sequences of rows, by the side of each document of each row.

    `documents` (B, T) are the numbers of the tokens' documents, from 0 in each row, below 0 for
    padding. `learned` (B, T) says which tokens have a target. Without `reference`, which has one
    number per sequence, all numbers of the reference are 0.

    Raises BadInput for a sequence without a target, and for other sequences than the reference's.
    """
    size = columns_for(max((len(row) for row in sides), default=0), paired=paired)
    shape = len(sides), size
    side = torch.zeros(shape, dtype=torch.int8)
    sums = torch.zeros(shape, dtype=torch.float64)
    numbers = torch.arange(size)[:, None]
    tokens = ((documents[:, None, :] == numbers) & learned[:, None, :]).sum(dim=-1)
    for row, row_sides in enumerate(sides):
        if not tokens[row, : len(row_sides)].all():
            empty = int(tokens[row].argmin())
            raise BadInput(
                f"sequence {empty} in row {row} of the batch has no token to learn. Prepare the "
                f"data again: an answer must fit into its row."
            )
        side[row, : len(row_sides)] = torch.tensor(row_sides, dtype=torch.int8)
        if reference is not None:
            if len(reference[row]) != len(row_sides):
                raise BadInput(
                    f"row {row} of the batch has {len(row_sides)} sequences, and numbers of the "
                    f"reference for {len(reference[row])}"
                )
            sums[row, : len(row_sides)] = torch.tensor(reference[row], dtype=torch.float64)
    return Sequences(sums, tokens, side)


def sequence_sums(log_probs: Tensor, documents: Tensor, count: int) -> Tensor:
    """Return the sum of the log-probabilities (B, T) of each document's tokens: fp64 (B, count).

    `documents` (B, T) are as in `sequences_of_rows`. Adding by index would add in any order on a
    GPU, and differences of running sums lose digits. So each document adds its tokens and zeros.
    """
    numbers = torch.arange(count, device=documents.device)[:, None]
    # sum(dtype=…) would make the same copy, but out of sight of what measures memory.
    return (log_probs[:, None, :] * (documents[:, None, :] == numbers)).double().sum(dim=-1)
