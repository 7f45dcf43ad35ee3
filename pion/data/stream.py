"""The training rows of a stage: one endless, randomly accessible stream over all its sources."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pion.data.order import MixtureOrder, RowOrder
from pion.data.shards import Row, Rows
from pion.errors import BadInput


@dataclass(frozen=True)
class Batch:
    """Rows as int64 tensors ``(B, T)``.

    Attributes:
        targets: next tokens; -100 where nothing is learned.
        positions: position of each token in its conversation; None if there are no conversations.
        documents: number of each token's conversation, -1 for padding; None if ``positions`` is.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor | None
    documents: Tensor | None


def map_batch(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """Return the batch with ``function`` applied to each of its tensors."""
    return Batch(
        function(batch.tokens),
        function(batch.targets),
        None if batch.positions is None else function(batch.positions),
        None if batch.documents is None else function(batch.documents),
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch on ``device``. Copies from page-locked memory don't block."""
    return map_batch(lambda tensor: tensor.to(device, non_blocking=True), batch)


class RowStream:
    """The training rows of all sources, in training order. Threads may share it.

    ``row(i)`` is a pure function of the sources' fingerprints, the weights, the seed and ``i``.

    Args:
        sources: the rows of each data set and their order.
        weights: each source's share of the rows; a single source needs no weight.

    Attributes:
        total_rows: number of rows in one epoch of all sources.
        fingerprint: sha256 of everything that decides which row ``i`` is.

    Raises:
        BadInput: there is no source, sources have rows of different length, or ``MixtureOrder``
            refuses the weights.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Rows, RowOrder]],
        weights: Sequence[float] | None = None,
        seed: int = 0,
    ) -> None:
        self._rows = [rows for rows, _ in sources]
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
        mixed = len(orders) > 1
        shares = [1.0] * len(orders) if weights is None else [float(w) for w in weights]
        self._order = MixtureOrder(orders, shares, seed) if mixed else orders[0]
        # All batches have the same structure: in a mixture with conversations, each row of text is
        # one document.
        self._has_documents = any(manifest.kind == "conversations" for manifest in manifests)
        self.total_rows = self._order.total_rows
        identity = [
            [[m.fingerprint, o.fingerprint, o.seed, o.window] for m, o in zip(manifests, orders)],
            [shares, seed] if mixed else None,
        ]
        self.fingerprint = hashlib.sha256(json.dumps(identity).encode()).hexdigest()

    def row(self, i: int) -> Row:
        """Return training row ``i`` >= 0. The stream has endless epochs.

        Raises:
            BadInput: the row's shard can't be read.
        """
        source, shard, row = self._locate(i)
        return self._rows[source].row(shard, row)

    def batch(self, indices: Sequence[int]) -> Batch:
        """Return the rows with these numbers, in this order.

        Raises:
            BadInput: a shard can't be read.
        """
        rows = [self.row(i) for i in indices]
        tokens = torch.from_numpy(np.stack([row.tokens for row in rows]))
        targets = torch.from_numpy(np.stack([row.targets for row in rows]))
        if not self._has_documents:
            return Batch(tokens, targets, None, None)
        nothing, whole = np.zeros_like(rows[0].tokens), np.arange(len(rows[0].tokens))
        documents = [nothing if r.documents is None else r.documents for r in rows]
        positions = [whole if r.positions is None else r.positions for r in rows]
        return Batch(
            tokens,
            targets,
            torch.from_numpy(np.stack(positions)),
            torch.from_numpy(np.stack(documents)),
        )

    def upcoming_shards(self, i: int, n: int) -> list[tuple[int, int]]:
        """Return the first ``n`` distinct (source, shard) needed from row ``i`` on, in order."""
        if isinstance(self._order, MixtureOrder):
            return self._order.shards_ahead(i, n)
        return [(0, shard) for shard in self._order.shards_ahead(i, n)]

    def _locate(self, i: int) -> tuple[int, int, int]:
        if isinstance(self._order, MixtureOrder):
            return self._order.locate(i)
        return 0, *self._order.locate(i)
