"""The answers in rows of preferences: which side each is on, and sums over its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pion.errors import BadInput

CHOSEN, REJECTED = 1, -1


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

    Raises BadInput if a row has more or fewer documents than sides, a sequence has no target, or
    the rows are `paired` and a chosen sequence is not followed by its rejected one.
    """
    longest = max((len(row) for row in sides), default=0)
    size = columns_for(longest, paired=paired)
    shape = len(sides), size
    side = torch.zeros(shape, dtype=torch.int8)
    sums = torch.zeros(shape, dtype=torch.float64)
    numbers = torch.arange(size)[:, None]
    tokens = ((documents[:, None, :] == numbers) & learned[:, None, :]).sum(dim=-1)
    for row, own in enumerate(sides):
        _check_row(row, own, documents[row], tokens[row], paired=paired)
        side[row, : len(own)] = torch.tensor(own, dtype=torch.int8)
        if reference is not None:
            if len(reference[row]) != len(own):
                raise BadInput(
                    f"row {row} of the batch has {len(own)} sequences, and numbers of the "
                    f"reference for {len(reference[row])}"
                )
            sums[row, : len(own)] = torch.tensor(reference[row], dtype=torch.float64)
    return Sequences(sums, tokens, side)


def _check_row(
    row: int, sides: Sequence[int], documents: Tensor, tokens: Tensor, *, paired: bool
) -> None:
    """Raise BadInput unless the sides of a row fit its documents."""
    found = int(documents.max()) + 1 if len(documents) else 0
    if found != len(sides):
        raise BadInput(f"row {row} of the batch has {found} documents, and {len(sides)} sides")
    if any(side not in (CHOSEN, REJECTED) for side in sides):
        raise BadInput(f"row {row} of the batch has sides {list(sides)}; each must be 1 or -1")
    in_turns = [CHOSEN, REJECTED] * (len(sides) // 2)
    if paired and list(sides) != in_turns:
        raise BadInput(
            f"row {row} of the batch has sides {list(sides)}, so it has no pairs: each chosen "
            f"answer (1) must be followed by its rejected one (-1). Prepare the data again."
        )
    empty = (tokens[: len(sides)] == 0).nonzero().flatten().tolist()
    if empty:
        raise BadInput(
            f"sequence {empty[0]} in row {row} of the batch has no token to learn. Prepare the "
            f"data again: an answer must fit into its row."
        )


def sequence_sums(log_probs: Tensor, documents: Tensor, count: int) -> Tensor:
    """Return the sum of the log-probabilities (B, T) of each document's tokens: fp64 (B, count).

    `documents` (B, T) are as in `sequences_of_rows`. Adding by index would add in any order on a
    GPU, and differences of running sums lose digits. So each document adds its tokens and zeros.
    """
    numbers = torch.arange(count, device=documents.device)[:, None]
    own = log_probs[:, None, :] * (documents[:, None, :] == numbers)
    # sum(dtype=…) would make the same copy, but out of sight of what measures memory.
    return own.double().sum(dim=-1)
