"""Learn each target token of rows: the batches of steps, what steps minimize, the held-out loss.

The next step's batch is built in a background thread while the current step computes.

A step's batch is a pure function of the data position and the micro-batch. If one of them changes
after a batch was built ahead (a restore, skipped rows), this batch is discarded and the right batch
is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from pion.config.parts import Role
from pion.data.order import rank_rows, rows_per_rank, step_rows
from pion.data.stream import Batch, RowStream, map_batch
from pion.evaluation.held_out import Evaluation, Scorer, evaluate
from pion.model.decoder import Decoder
from pion.model.loss import IGNORED
from pion.train.hardware import torch_dtype
from pion.train.objective import CrossEntropy, Objective

if TYPE_CHECKING:
    from pion.train.gradients import Ranks
    from pion.train.settings import ComputePlan, TrainSettings

RowRange = tuple[int, int]  # [first, stop)


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of an optimizer step, in host memory."""

    rows: RowRange  # of the whole step, over all ranks, including skipped rows
    micro_batches: list[Batch]
    targets: int  # target tokens in this rank's micro-batches
    rounds: int  # the micro-batches of the rank that has the most
    tokens: int  # that count for the speed, of all ranks
    length: int = 1  # how many of the step's rows are read as one
    learns: bool = True  # whether any rank has anything to learn
    # This rank's part of what the step reports, by name. The parts of all ranks add up.
    measures: Mapping[str, float] = field(default_factory=dict)

    def measures_on(self, device: torch.device) -> dict[str, Tensor]:
        """Return the measures as scalars in fp32, which reach the device in one copy."""
        numbers = list(self.measures.values())
        return dict(zip(self.measures, torch.tensor(numbers, device=device) if numbers else ()))


# What decides a step's batch: the next row, the skipped rows, and the micro-batch.
_Position = tuple[int, tuple[RowRange, ...], int]


class BatchFeed:
    """The batches of one rank, step after step. The plan may change between steps.

    For a GPU, batches are in page-locked memory, so that copying them does not block.
    """

    # Weights that this way of learning has no loss for.
    without_loss: ClassVar[frozenset[Role]] = frozenset()

    def __init__(
        self,
        model: Decoder,
        stream: RowStream,
        settings: TrainSettings,
        plan: ComputePlan,
        *,
        rank: int,
        ranks: Ranks,
    ) -> None:
        self.model, self._stream, self.settings, self.plan = model, stream, settings, plan
        self.rank, self.ranks = rank, ranks
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batch-feed")
        self._ahead: tuple[_Position, Future[StepBatch]] | None = None

    def take(self, next_row: int, skipped: list[RowRange]) -> StepBatch:
        """Return the batch of the step at `next_row`, without the `skipped` row ranges.

        Raises BadInput if there are fewer rows in a step than ranks, or a shard can't be read.
        """
        position = (next_row, tuple(skipped), self.plan.micro_batch)
        if self._ahead is not None and self._ahead[0] == position:
            batch = self._ahead[1].result()
            self._ahead = None
            return batch
        return self._build(*position)

    def prepare(self, next_row: int, skipped: list[RowRange]) -> None:
        """Start building the batch for the next `take`."""
        position = (next_row, tuple(skipped), self.plan.micro_batch)
        self._ahead = (position, self._thread.submit(self._build, *position))

    def follow(self, plan: ComputePlan) -> None:
        """Let the next batches be those of another plan."""
        self.plan = plan

    def close(self) -> None:
        """End the background thread."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def objective(self, batch: StepBatch, targets: Tensor) -> Objective:
        """Return what the step of this batch minimizes. `targets` is the step's number of targets.

        Every rank calls this method. Raises BadInput for rows that the way can't learn from.
        """
        return CrossEntropy(1 / targets.clamp(min=1.0))

    def evaluate(
        self,
        stream: RowStream,
        rows: range,
        micro_batch: int,
        end_of_text: int,
        vocab_size: int | None,
        on_batch: Callable[[], None],
    ) -> Evaluation:
        """Return the held-out loss over `rows` of `stream`, split over ranks: see
        `Trainer.evaluate`."""
        ids, dtype = vocab_size or self.model.config.vocab_size, torch_dtype(self.plan.dtype)
        scorer = Scorer(self.model, ids, micro_batch, dtype, on_batch)
        ranks = self.plan.world_size
        return evaluate(scorer, stream, rows, end_of_text, rank=self.rank, world_size=ranks)

    def _build(self, next_row: int, skipped: tuple[RowRange, ...], micro_batch: int) -> StepBatch:
        rows, after = step_rows(next_row, self.settings.global_batch, skipped)
        # So many rows are read as one.
        length = self._stream.length_at(rows[0]) if isinstance(self._stream, RowStream) else 1
        micro_batch = max(1, micro_batch // length)
        parts = rank_rows(rows[::length], self.rank, self.plan.world_size, micro_batch)
        micro_batches = [self._stream.batch(part) for part in parts]
        if self.plan.device.startswith("cuda"):
            micro_batches = [map_batch(Tensor.pin_memory, batch) for batch in micro_batches]
        targets = sum(int((batch.targets != IGNORED).sum()) for batch in micro_batches)
        rounds = -(-rows_per_rank(len(rows) // length, self.plan.world_size) // micro_batch)
        tokens = len(rows) // length * micro_batches[0].tokens.shape[1]
        return StepBatch((next_row, after), micro_batches, targets, rounds, tokens, length)
