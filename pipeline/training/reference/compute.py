"""Compute the numbers of a reference: with the weights that a stage starts from, before its first
step, on all ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pion.errors import PlanFailed
from pion.model.attention.masks import masked_by_flex
from pion.train.reference import check_sums, sums_of, unchanged
from pion.train.smaller_plan import step_down
from pipeline.console.messages import Note, PrepareProgress
from pipeline.cost.timeline import REFERENCE_PASS
from pipeline.training.reference.columns import (
    Column,
    columns_of,
    read_unfinished,
    write_column,
    write_unfinished,
)

if TYPE_CHECKING:
    from pion.data.stream import RowStream
    from pipeline.training.context import TrainingContext
    from pipeline.training.stage_model import StageModel

# What is computed is written as soon as so many seconds are over: a killed process loses no more.
# On a store that limits its commits, these writes are as far apart as checkpoints.
KEPT_SECONDS = 20.0


def compute_columns(
    context: TrainingContext,
    streams: Mapping[str, RowStream],
    start: StageModel,
    key: str,
    folder: Path,
) -> None:
    """Compute the columns of all splits; rank 0 writes them below a folder.

    Every rank calls this. Raises Interrupted or Stopped if asked to stop, PlanFailed if this
    machine needs a smaller plan, and BadInput for a model that predicts NaN or infinity.
    """
    columns, group, clock = columns_of(streams), context.group, context.run.clock
    read = partial(read_unfinished, context, key, columns)
    done = context.patiently(read) if group.rank == 0 else {}
    first = group.from_rank_0({name: len(rows) for name, rows in done.items()})
    total, finished = sum(column.rows for column in columns), sum(first.values())
    if finished:
        words = f"continuing after row {finished:,} of {total:,}"
        context.report(Note(f"prefer: {REFERENCE_PASS}: {words}"))
    before, began = finished, clock.monotonic()
    flushed = began
    with unchanged(start.model), start.measuring(), smaller_plans(context, start):
        for column in columns:
            rows, size = done.pop(column.name, []), start.plan.micro_batch
            for parts in batches(first[column.name], column.rows, size, group.world_size):
                new, stop = _computed_together(context, streams, start, column, parts)
                rows += new
                finished += len(new)
                seconds_apart = max(KEPT_SECONDS, context.run.store.save_seconds)
                due = stop or clock.monotonic() - flushed >= seconds_apart
                if due or parts[-1].stop == column.rows:
                    write_unfinished(context, key, column.name, rows, flush=due)
                    flushed = clock.monotonic() if due else flushed
                eta = (total - finished) * (clock.monotonic() - began) / (finished - before)
                progress = PrepareProgress(REFERENCE_PASS, finished, "rows", total, "prefer", eta)
                context.watchdog.progress()
                context.report(progress)
                if stop:
                    raise context.stopped(
                        "Interrupted while the reference was computed. Its numbers so far are "
                        "safe. Run the same command again to continue."
                    )
            if group.rank == 0:
                write_column(folder / column.name, rows)


def batches(first: int, stop: int, size: int, ranks: int) -> Iterator[list[range]]:
    """Yield, round after round, the rows of each rank.

    The rows of a batch depend on `first` and on the `size` of batches alone, and not on how many
    ranks there are. So the numbers don't, either.
    """
    for start in range(first, stop, size * ranks):
        begins = range(start, start + size * ranks, size)
        yield [range(min(begin, stop), min(begin + size, stop)) for begin in begins]


def _computed_together(
    context: TrainingContext,
    streams: Mapping[str, RowStream],
    start: StageModel,
    column: Column,
    parts: Sequence[range],
) -> tuple[list[list[float]], bool]:
    """Return the numbers of the rows of all ranks, and whether one of them was asked to stop.

    A rank of a sharded model without rows computes those of rank 0, with the others.
    """
    mine, numbers = parts[context.group.rank], list[list[float]]()
    if mine or start.shards is not None:
        places = [(column.source, column.shard, row) for row in mine or parts[0]]
        numbers = sums_of(start.model, streams[column.split].batch_at(places), start.plan)
    answers = context.group.of_all_ranks((numbers if mine else [], context.should_stop()))
    rows = [row for some, _ in answers for row in some]
    flat = np.array([number for row in rows for number in row])
    check_sums(flat, "the model that prefer starts from can't be a reference")
    return rows, any(asked for _, asked in answers)


@contextmanager
def smaller_plans(context: TrainingContext, start: StageModel) -> Iterator[None]:
    """Raise PlanFailed, as a training step does, if memory runs out or the compiler fails."""
    plan, config = start.plan, start.model.config
    may_divide = context.job.hardware.sharded is None
    flex = masked_by_flex(config, torch.device(plan.device), documents=True)
    try:
        yield
    except Exception as error:
        change = step_down(plan, error, uses_flex=flex, may_divide=may_divide)
        if change is None:
            raise
        raise PlanFailed(change.plan.to_dict(), change.why) from None
