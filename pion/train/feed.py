"""Build the next step's batch in a background thread while the current step computes.

A step's batch is a pure function of the data position and the micro-batch. If one of them changes
after a batch was built ahead (a restore, skipped rows), this batch is discarded and the right batch
is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pion.data.order import rank_rows, step_rows
from pion.data.stream import Batch, RowStream, map_batch
from pion.errors import BadInput
from pion.model.loss import IGNORED

if TYPE_CHECKING:
    from pion.train.settings import ComputePlan

RowRange = tuple[int, int]  # [first, stop)


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of an optimizer step, in host memory."""

    rows: RowRange  # of the whole step, over all ranks, including skipped rows
    micro_batches: list[Batch]
    targets: int  # target tokens in this rank's micro-batches
    length: int = 1  # how many of the step's rows are read as one
    learns: bool = True  # whether the batch has anything to learn
    # This rank's part of what the step reports, by name. The parts of all ranks add up.
    measures: Mapping[str, float] = field(default_factory=dict)

    def measures_on(self, device: torch.device) -> dict[str, Tensor]:
        """Return the measures as scalars in fp32, which reach the device in one copy."""
        numbers = list(self.measures.values())
        return dict(zip(self.measures, torch.tensor(numbers, device=device) if numbers else ()))

    def answers(self) -> tuple[int, int, int]:
        """Return how many chosen and rejected answers this rank has, and the tokens of the chosen.

        Raises BadInput for rows that are not of preferences.
        """
        chosen = rejected = tokens = 0
        for batch in self.micro_batches:
            if batch.sequences is None:
                raise BadInput(
                    "the stage learns from preferences, but its rows have no chosen and rejected "
                    "answers. Prepare its data as preferences"
                )
            side = batch.sequences.side
            chosen += int((side > 0).sum())
            rejected += int((side < 0).sum())
            tokens += int((batch.sequences.tokens * (side > 0)).sum())
        return chosen, rejected, tokens


# What decides a step's batch: the next row, the skipped rows, and the micro-batch.
_Position = tuple[int, tuple[RowRange, ...], int]


class BatchFeed:
    """The batches of one rank, step after step. The plan may change between steps.

    `pin` puts the batches into page-locked memory, so that copying them to a GPU does not block.
    """

    def __init__(
        self,
        stream: RowStream,
        *,
        global_batch: int,
        micro_batch: int,
        rank: int,
        world_size: int,
        pin: bool,
    ) -> None:
        self._stream, self._pin = stream, pin
        self._global_batch, self.micro_batch = global_batch, micro_batch
        self._rank, self._world_size = rank, world_size
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch-feed")
        self._ahead: tuple[_Position, Future[StepBatch]] | None = None

    def take(self, next_row: int, skipped: list[RowRange]) -> StepBatch:
        """Return the batch of the step at `next_row`, without the `skipped` row ranges.

        Raises BadInput if there are fewer rows in a step than ranks, or a shard can't be read.
        """
        position = (next_row, tuple(skipped), self.micro_batch)
        if self._ahead is not None and self._ahead[0] == position:
            batch = self._ahead[1].result()
            self._ahead = None
            return batch
        return self._build(*position)

    def prepare(self, next_row: int, skipped: list[RowRange]) -> None:
        """Start building the batch for the next `take`."""
        position = (next_row, tuple(skipped), self.micro_batch)
        self._ahead = (position, self._thread.submit(self._build, *position))

    def follow(self, plan: ComputePlan) -> None:
        """Let the next batches be those of another plan."""
        self.micro_batch = plan.micro_batch

    def close(self) -> None:
        """End the background thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _build(self, next_row: int, skipped: tuple[RowRange, ...], micro_batch: int) -> StepBatch:
        rows, after = step_rows(next_row, self._global_batch, skipped)
        # So many rows are read as one.
        length = self._stream.length_at(rows[0]) if isinstance(self._stream, RowStream) else 1
        micro_batch = max(1, micro_batch // length)
        parts = rank_rows(rows[::length], self._rank, self._world_size, micro_batch)
        micro_batches = [self._stream.batch(part) for part in parts]
        if self._pin:
            micro_batches = [map_batch(Tensor.pin_memory, batch) for batch in micro_batches]
        targets = sum(int((batch.targets != IGNORED).sum()) for batch in micro_batches)
        return StepBatch((next_row, after), micro_batches, targets, length)
