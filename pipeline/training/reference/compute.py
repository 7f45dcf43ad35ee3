"""Compute the numbers of a reference: with the weights that a stage starts from, before its first
step, on all ranks."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pion.errors import BadInput, Interrupted, PionError, Stopped
from pion.model.decoder import Decoder
from pion.train.reference import ReferenceSums, check_reference, check_sums, sums_of, unchanged
from pion.train.settings import ComputePlan
from pipeline.console.messages import Note, PrepareProgress
from pipeline.data.prepared import SPLITS
from pipeline.state.head import REFERENCE
from pipeline.state.owner import Owner
from pipeline.state.record_json import damaged
from pipeline.state.shared.folder import REFERENCE_FILE, bring_data
from pipeline.training.reference.chunks import Chunks, Rows, batches
from pipeline.training.reference.share import (
    Bound,
    Sharing,
    key_of,
    read_reference,
    write_reference,
)

if TYPE_CHECKING:
    from pion.data.stream import RowStream
    from pipeline.training.context import TrainingContext

# A chunk is written as soon as so many seconds are over: a killed process loses no more. On a store
# that limits its commits, the chunks are as far apart as checkpoints.
CHUNK_SECONDS = 20.0

Streams = Mapping[str, "RowStream"]


@dataclass(frozen=True)
class StartingModel:
    """The model that a stage starts from, and how this machine computes it.

    `weights` is the hash of its weights.
    """

    model: Decoder
    weights: str
    plan: ComputePlan


def make_reference(context: TrainingContext, streams: Streams, start: StartingModel) -> Bound:
    """Return the numbers of the model that a stage starts from, computed unless the store has them.

    `streams` has the rows of each split. HEAD names the numbers from then on. Every rank calls
    this. Raises Interrupted or Stopped if asked to stop, and BadInput for a model that predicts
    NaN or infinity.
    """
    from pion.train.hardware import configure

    configure(start.plan)
    start.model.to(torch.device(start.plan.device))
    contents = {split: stream.contents for split, stream in streams.items()}
    key = key_of(start.weights, contents, start.plan.dtype)
    rank_0 = context.group.rank == 0
    sharing = _sharing(context, key) if rank_0 else None
    if not context.group.from_rank_0(sharing.use_what_is_there() if sharing else None):
        chunks = Chunks(context.run, key)
        computing = _Pass(context, start, chunks if rank_0 else None)
        with unchanged(start.model):
            splits = {split: computing.of(split, streams[split]) for split in SPLITS}
        if sharing is not None:
            with tempfile.TemporaryDirectory(prefix="pion-reference-") as folder:
                about = {
                    "weights": start.weights,
                    "rows": contents,
                    "dtype": start.plan.dtype,
                    "micro_batch": start.plan.micro_batch,
                    "device": start.plan.device,
                }
                write_reference(Path(folder), key, splits, about)
                sharing.share(Path(folder), (f"the reference of run {context.run.name}",))
            context.patiently(chunks.delete)
        context.group.wait_for_all()  # until HEAD names the numbers
    return bound_reference(context, streams)


def bound_reference(context: TrainingContext, streams: Streams) -> Bound:
    """Return the numbers that HEAD names. Every rank calls this.

    Raises PionError if the store's copy is missing or damaged, and `Damaged` if HEAD names none.
    """

    def bring() -> Path:
        head = context.run.read()
        assert head is not None
        if REFERENCE not in head.data:
            raise damaged(
                f"{context.run.url}/HEAD.json",
                "it has a checkpoint of prefer, and no reference. Its numbers are not computed "
                "again from trained weights. To train the stage again, use --redo prefer",
            )
        return bring_data(context.run, head, REFERENCE)

    rows = {split: stream.total_rows for split, stream in streams.items()}
    return read_reference(context.fetch(bring), rows)


def require_same(bound: Bound, folder: Path) -> None:
    """Raise PionError if the checkpoint in `folder` was trained with other numbers than HEAD's."""
    path = folder / REFERENCE_FILE
    recorded = path.read_bytes() if path.is_file() else b""
    if recorded != bound.record:
        raise PionError(
            f"{path}: this checkpoint was trained with other numbers of a reference than those "
            "that HEAD names. Nothing was changed. To train the stage again from its start, use "
            "--redo prefer"
        )


def check_start(start: StartingModel, stream: RowStream) -> None:
    """Raise BadInput if the stored numbers of the first rows are not those of this model."""
    batch = stream.batch(range(min(start.plan.micro_batch, stream.total_rows)))
    try:
        check_reference(start.model, batch, start.plan, "prefer")
    except BadInput as error:
        raise BadInput(
            f"{error}. Nothing was trained. Delete this data (its folder is in HEAD.json, "
            f"data.{REFERENCE}), or report this"
        ) from None


@dataclass(frozen=True)
class _Pass:
    """One pass over the rows. `chunks` is rank 0's, and None on other ranks."""

    context: TrainingContext
    start: StartingModel
    chunks: Chunks | None

    def of(self, split: str, stream: RowStream) -> ReferenceSums:
        """Return the numbers of a split; on other ranks than 0, none."""
        context, group = self.context, self.context.group
        done = context.patiently(partial(self.chunks.read, split)) if self.chunks else Rows()
        first = group.from_rank_0(done.stop)
        if first:
            context.report(Note(f"reference: continuing {split} after row {first:,}"))
        new, since = Rows(first), context.run.clock.monotonic()
        places = list(stream.places())
        size = self.start.plan.micro_batch
        for parts in batches(first, len(places), size, group.world_size):
            mine = [places[row] for row in parts[group.rank]]
            found = self._sums(stream, mine)
            answers = group.of_all_ranks((found, context.should_stop()))
            for row in (row for rows, _ in answers for row in rows):
                new.add(row)
            stop = any(asked for _, asked in answers)
            if stop or (context.run.clock.monotonic() - since >= self._seconds):
                self._write(split, new, done)
                new, since = Rows(new.stop), context.run.clock.monotonic()
            context.watchdog.progress()
            context.report(PrepareProgress(f"reference: {split}", new.stop, "rows", len(places)))
            if stop:
                raise self._stopped()
        self._write(split, new, done)
        return done.whole()

    def _sums(self, stream: RowStream, places: list[Any]) -> list[list[float]]:
        if not places:
            return []
        found = sums_of(self.start.model, stream.batch_at(places), self.start.plan)
        check_sums(
            np.array([number for row in found for number in row]),
            "the model that prefer starts from can't be a reference",
        )
        return found

    def _write(self, split: str, new: Rows, done: Rows) -> None:
        if self.chunks is None or not new.counts:
            return
        if self.context.owned is not None:
            self.context.owned.check()
        self.context.patiently(partial(self.chunks.write, split, new))
        done.counts += new.counts
        done.sums += new.sums

    @property
    def _seconds(self) -> float:
        return max(CHUNK_SECONDS, self.context.run.store.save_seconds)

    def _stopped(self) -> PionError:
        if self.context.stop_reason is not None:
            return Stopped(self.context.stop_reason)
        return Interrupted(
            "Interrupted while the reference was computed. Its numbers so far are safe. Run the "
            "same command again to continue."
        )


def _sharing(context: TrainingContext, key: str) -> Sharing:
    assert context.owned is not None
    owner = Owner(**context.request.owner)
    return Sharing(context.owned, owner, key, context.report, context.patiently)
