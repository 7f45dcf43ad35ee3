"""The training rows of a stage: one endless, randomly accessible stream over all its sources."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import Self

import numpy as np
import torch
from torch import Tensor

from pion.data.order import MixtureOrder, RowOrder
from pion.data.phased_order import PhasedOrder
from pion.data.sequences import Sequences, sequences_of_rows
from pion.data.shards import IGNORED, PREFERENCES, Row, Rows, Shard
from pion.errors import BadInput


@dataclass(frozen=True)
class Sampled:
    """What is known of targets that the model itself has drawn, each (B, T).

    Attributes:
        weights: how much better than the others the answer of the target was, in fp32.
        log_probs: the log-probability with which the target was drawn, in nats, in fp32.
        branches: which answer of its document a token is of, from 1; 0 in the prompt. Answers to
            one prompt do not see each other.
    """

    weights: Tensor
    log_probs: Tensor
    branches: Tensor

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Sampled":
        """Return the same with ``function`` applied to each of the tensors."""
        return Sampled(*map(function, (self.weights, self.log_probs, self.branches)))


@dataclass(frozen=True)
class Batch:
    """Rows as int64 tensors ``(B, T)``.

    Attributes:
        targets: next tokens; -100 where nothing is learned.
        positions: position of each token in its conversation, or in a row of text; None if the
            stream has no conversations.
        documents: number of each token's conversation or document, which rises along the row; -1
            for the padding of conversations, at its end. Tokens attend only within their document.
            None if every row is a single document.
        sequences: the answers in rows of preferences; None for rows of other kinds.
        sampled: of answers that the model has drawn; None for rows of other kinds.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor | None
    documents: Tensor | None
    sequences: Sequences | None = None
    sampled: Sampled | None = None


def map_batch(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """Return the batch with ``function`` applied to each of its tensors, those of sequences too."""
    return Batch(
        function(batch.tokens),
        function(batch.targets),
        None if batch.positions is None else function(batch.positions),
        None if batch.documents is None else function(batch.documents),
        None if batch.sequences is None else batch.sequences.mapped(function),
        None if batch.sampled is None else batch.sampled.mapped(function),
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on ``device``. Copies from page-locked memory don't block."""
    return map_batch(lambda tensor: tensor.to(device, non_blocking=True), batch)


# Where a row is: the place of its source, the number of its shard, and the row in this shard.
Place = tuple[int, int, int]
# Returns what the reference model gives for each sequence of a row, in nats.
References = Callable[[Place], Sequence[float]]


class RowStream:
    """The training rows of all sources, in training order. Threads may share it.

    ``row(i)`` is a pure function of the sources' fingerprints, the weights (or the phases), the
    seed and ``i``.

    Args:
        sources: the rows of each data set and their order.
        weights: each source's share of the rows, by default equal shares; or the order of the
            rows of all sources in phases.
        documents: the end-of-text id, if each end-of-text in a row of text begins a new document;
            None if a row of text is a single document. Conversations have their own documents.

    Attributes:
        total_rows: number of rows in one epoch of all sources.
        seq_len: tokens in a row.
        contents: the fingerprint of each source's rows, whatever their order.

    Raises:
        BadInput: there is no source, sources have rows of different length, preferences are mixed
            with rows of another kind, or ``MixtureOrder`` refuses the weights.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Rows, RowOrder]],
        weights: Sequence[float] | PhasedOrder | None = None,
        seed: int = 0,
        documents: int | None = None,
    ) -> None:
        self._rows: list[Rows] = [rows for rows, _ in sources]
        orders = [order for _, order in sources]
        manifests = [rows.manifest for rows in self._rows]
        lengths = {manifest.seq_len for manifest in manifests}
        if len(lengths) != 1:
            raise BadInput(
                f"the data sources have rows of {sorted(lengths)} ids; they must all have the "
                f"same seq_len."
                if lengths
                else "there is no data source."
            )
        kinds = sorted({manifest.kind for manifest in manifests})
        if len(kinds) > 1 and set(kinds) & set(PREFERENCES):
            raise BadInput(
                f"the data sources have rows of {' and of '.join(kinds)}; rows of preferences "
                "can't be mixed with rows of another kind."
            )
        self._order = (
            weights
            if isinstance(weights, PhasedOrder)
            else MixtureOrder(orders, weights or [1.0] * len(orders), seed)
        )
        # All batches have the same structure, so rows of text have positions and documents too if
        # they are mixed with conversations.
        self._has_conversations = kinds != ["tokens"]
        self._paired = kinds == ["pairs"]
        counts = [manifest.shard_rows for manifest in manifests]
        ends = accumulate((n for rows in counts for n in rows), initial=0)
        # Of each source, the number of the first row of each shard.
        self._first_rows = [list(islice(ends, len(rows))) for rows in counts]
        self.seq_len = manifests[0].seq_len
        self.contents = [manifest.fingerprint for manifest in manifests]
        self._references: References | None = None
        self._end_of_text = documents
        self.total_rows = self._order.total_rows

    def row(self, i: int) -> Row:
        """Return the training row that begins at ``i`` >= 0. The stream has endless epochs.

        Raises:
            BadInput: the row's shard can't be read.
        """
        source, shard, row = self.place(i)
        return self._rows[source].row(shard, row, self.length_at(i))

    def with_references(self, references: References) -> Self:
        """Return the same stream, whose sequences have the numbers of a reference model."""
        stream = copy.copy(self)
        stream._references = references
        return stream

    def shards(self) -> Iterator[tuple[int, int, Shard]]:
        """Yield the number of the source, the number in it, and the description of each shard."""
        for source, rows in enumerate(self._rows):
            for number, shard in enumerate(rows.manifest.shards):
                yield source, number, shard

    def place(self, i: int) -> Place:
        """Return where training row ``i`` >= 0 is."""
        return self._order.locate(i)

    def length_at(self, i: int) -> int:
        """Return how many rows from ``i`` on are read as one."""
        return self._order.length_at(i) if isinstance(self._order, PhasedOrder) else 1

    def number_of(self, place: Place) -> int:
        """Return the number of a row from 0, through the shards of all sources."""
        source, shard, row = place
        return self._first_rows[source][shard] + row

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the rows that begin at these numbers of one phase, in this order.

        Raises:
            BadInput: a shard can't be read.
        """
        return self.batch_at([self.place(i) for i in indices], self.length_at(indices[0]))

    def batch_at(self, places: Sequence[Place], length: int = 1) -> Batch:
        """Return the rows at these places, in this order; ``length`` rows are read as one.

        Raises:
            BadInput: a shard can't be read, or the reference's numbers don't fit the rows.
        """
        rows = [self._rows[source].row(shard, row, length) for source, shard, row in places]
        tokens = torch.from_numpy(np.stack([row.tokens for row in rows]))
        targets = torch.from_numpy(np.stack([row.targets for row in rows]))
        positions = documents = None
        if self._has_conversations:
            row_positions = np.arange(tokens.shape[1])
            placed = [row_positions if row.positions is None else row.positions for row in rows]
            positions = torch.from_numpy(np.stack(placed))
        if self._has_conversations or self._end_of_text is not None:
            documents = torch.from_numpy(np.stack([self._documents(row) for row in rows]))
        batch = Batch(tokens, targets, positions, documents)
        sides = [row.sides.tolist() for row in rows if row.sides is not None]
        return batch if not sides else replace(batch, sequences=self._of(batch, sides, places))

    def _of(
        self, batch: Batch, sides: Sequence[Sequence[int]], places: Sequence[Place]
    ) -> Sequences:
        """Return the sequences of a batch of preferences."""
        assert batch.documents is not None
        references = None if self._references is None else [*map(self._references, places)]
        return sequences_of_rows(
            sides, batch.documents, batch.targets != IGNORED, references, paired=self._paired
        )

    def document_numbers(self, indices: Sequence[int], end_of_text: int) -> np.ndarray:
        """Return which document each target of these rows of one length belongs to, int64
        ``(R, T)``.

        Two targets have the same number if they are of the same document or conversation. The
        document at the beginning of a row of text may have begun in rows before, which are read.
        """
        first: dict[tuple[int, int, int, int], int] = {}
        numbers = []
        length = self.length_at(indices[0]) if len(indices) else 1
        parts = [(*self.place(i), part) for i in indices for part in range(length)]
        for source, shard, head, part in parts:
            row_number = head + part
            row = self._rows[source].row(shard, row_number)
            if row.documents is not None:
                keys = [(source, shard, row_number, int(n)) for n in row.documents]
            else:
                inside = np.cumsum(row.tokens == end_of_text)
                begun = self._begun(source, shard, row_number, end_of_text)
                keys = [(source, shard, row_number, int(n)) if n else begun for n in inside]
            numbers.append([first.setdefault(key, len(first)) for key in keys])
        return np.array(numbers, dtype=np.int64).reshape(len(indices), -1 if numbers else 0)

    def _begun(
        self, source: int, shard: int, row_number: int, end_of_text: int
    ) -> tuple[int, int, int, int]:
        """Return where the document at the beginning of a row of text began: the row, and how many
        ends of text this row has before it."""
        rows = self._rows[source]
        while (shard, row_number) != (0, 0):
            if row_number == 0:
                shard, row_number = shard - 1, rows.manifest.shards[shard - 1].rows
            row_number -= 1
            if ends := int((rows.row(shard, row_number).tokens == end_of_text).sum()):
                return source, shard, row_number, ends
        return source, 0, 0, 0

    def upcoming_shards(self, i: int, n: int) -> list[tuple[int, int]]:
        """Return the first ``n`` distinct (source, shard) needed from row ``i`` on, in order."""
        return self._order.shards_ahead(i, n)

    def _documents(self, row: Row) -> np.ndarray:
        """Return the number of each token's document, int64 ``(seq_len,)``.

        In a row of text, an end-of-text is the first token of its document. The first document of
        the row may have begun in the row before.
        """
        if row.documents is not None:
            return row.documents
        if self._end_of_text is None:
            return np.zeros_like(row.tokens)
        return np.cumsum(row.tokens == self._end_of_text, dtype=np.int64)
