"""Compute the numbers of a reference: with the weights that a stage starts from, before its first
step, on all ranks."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from pion.errors import BadInput, Interrupted, PionError, PlanFailed, Stopped
from pion.model.attention.masks import masked_by_flex
from pion.model.decoder import Decoder
from pion.train.reference import ReferenceSums, check_reference, check_sums, sums_of, unchanged
from pion.train.settings import ComputePlan
from pion.train.smaller_plan import step_down
from pipeline.console.messages import Note, Phase, PrepareProgress
from pipeline.cost.timeline import REFERENCE_PASS
from pipeline.job.digest import model_inputs
from pipeline.machine.kill_points import mark
from pipeline.state.head import REFERENCE
from pipeline.state.shared.folder import REFERENCE_FILE, bring_data
from pipeline.state.stores.errors import StoreError
from pipeline.training.reference.chunks import Chunks, Rows, batches, flat
from pipeline.training.reference.share import (
    Bound,
    Sharing,
    key_of,
    read_reference,
    write_reference,
)

if TYPE_CHECKING:
    from pion.data.stream import Batch, Place, RowStream
    from pion.train.sharding import Shards
    from pipeline.training.context import TrainingContext

# A chunk is written as soon as so many seconds are over: a killed process loses no more. On a store
# that limits its commits, the chunks are as far apart as checkpoints.
CHUNK_SECONDS = 20.0

Streams = Mapping[str, "RowStream"]
Found = TypeVar("Found")


@dataclass(frozen=True)
class StartingModel:
    """The model that a stage starts from, and how this machine computes it.

    `weights` is the hash of its weights. `shards` are this rank's part if the model is sharded.
    Then all ranks compute together.
    """

    model: Decoder
    weights: str
    plan: ComputePlan
    shards: Shards | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What else decides its numbers, but for rounding."""
        return {
            "model": model_inputs(self.model.config),
            "dtype": self.plan.dtype,
            "residual": self.plan.residual,
        }

    def measuring(self) -> AbstractContextManager[None]:
        """Return what frees the weights that are gathered in the block."""
        return nullcontext() if self.shards is None else self.shards.measuring()


def make_reference(context: TrainingContext, streams: Streams, start: StartingModel) -> Bound:
    """Return the numbers of the model that a stage starts from, computed unless the store has them.

    Numbers that are damaged, missing or not of this model are computed again: no step has learned
    with them. `streams` has the rows of each split. HEAD names the numbers from then on. Every rank
    calls this. Raises Interrupted or Stopped if asked to stop, PlanFailed if this machine needs a
    smaller plan, and BadInput for a model that predicts NaN or infinity.
    """
    ready(start)
    contents = {split: stream.contents for split, stream in streams.items()}
    key = key_of(start.weights, start.settings, contents)
    sharing = Sharing(context, key) if context.group.rank == 0 else None
    there = context.group.from_rank_0(sharing.use_what_is_there() if sharing else None)
    bound, wrong = _usable(context, streams, start) if there else (None, "")
    if bound is None:
        if there:
            context.report(Note(f"{wrong}. No step has learned with it: it is computed again"))
        began = time.monotonic()
        _compute(context, streams, start, sharing, again=there)
        context.report(Phase(REFERENCE_PASS, time.monotonic() - began))
    if sharing is not None:  # HEAD names the whole now
        context.patiently(Chunks(context.run, key).delete_all)
    if bound is None:
        bound, wrong = _usable(context, streams, start)
    if bound is None:
        raise BadInput(
            f"{wrong}. Nothing was trained. These numbers were computed just now, so this machine "
            "does not compute the same twice. Set hardware.compile=false, or use another machine, "
            "and run the same command again"
        )
    return bound


def _compute(
    context: TrainingContext,
    streams: Streams,
    start: StartingModel,
    sharing: Sharing | None,
    *,
    again: bool,
) -> None:
    """Compute the numbers of all splits, and let HEAD name them. `sharing` is rank 0's."""
    chunks = Chunks(context.run, sharing.key) if sharing is not None else None
    total = sum(stream.total_rows for stream in streams.values())
    computing = _Pass(context, start, chunks, total, context.run.clock.monotonic())
    with unchanged(start.model), start.measuring(), _smaller_plans(context, start):
        splits = {split: computing.of(split, stream) for split, stream in streams.items()}
    if sharing is not None:
        with tempfile.TemporaryDirectory(prefix="pion-reference-") as folder:
            about = {
                "weights": start.weights,
                "rows": {split: stream.contents for split, stream in streams.items()},
                "micro_batch": start.plan.micro_batch,
                "device": start.plan.device,
                **start.settings,
            }
            write_reference(Path(folder), sharing.key, splits, about)
            mark("reference")
            sharing.share(Path(folder), (f"the reference of run {context.run.name}",), again=again)
            mark("reference")
    context.group.wait_for_all()  # until HEAD names the numbers


def _usable(
    context: TrainingContext, streams: Streams, start: StartingModel
) -> tuple[Bound | None, str]:
    """Return the numbers that HEAD names, or why a rank can't use them."""
    bound, wrong = _of_all_ranks(context, lambda: _named_by_head(context, streams))
    return (None, wrong) if bound is None else _checked(context, streams, start, bound)


def _of_all_ranks(context: TrainingContext, work: Callable[[], Found]) -> tuple[Found | None, str]:
    """Return what `work` returns, or why it fails on one of the ranks.

    If it fails on one rank only, the others may not wait for this rank in it.
    """
    found, wrong = None, None
    try:
        found = work()
    except (StoreError, PlanFailed):
        raise
    except PionError as error:
        wrong = str(error)
    refused = [one for one in context.group.of_all_ranks(wrong) if one is not None]
    return (None, refused[0]) if refused else (found, "")


def bound_reference(context: TrainingContext, streams: Streams) -> Bound:
    """Return the numbers that HEAD names, for a stage that has learned with them. Every rank calls
    this.

    Raises PionError if they are missing or damaged.
    """
    bound, wrong = _of_all_ranks(context, lambda: _named_by_head(context, streams))
    if bound is None:
        raise PionError(
            f"the numbers of the reference can't be used: {wrong}. The checkpoints are safe, but "
            "prefer can't continue with other numbers. To train it again from its start, use "
            "--redo prefer: then they are computed again"
        )
    return bound


def _named_by_head(context: TrainingContext, streams: Streams) -> Bound:
    def bring() -> Path:
        head = context.run.read()
        assert head is not None
        return bring_data(context.run, head, REFERENCE)

    rows = {split: stream.total_rows for split, stream in streams.items()}
    return read_reference(context.patiently(bring), rows)


def require_same(context: TrainingContext, bound: Bound, folder: Path | None) -> None:
    """Raise PionError if the checkpoint in rank 0's `folder` was trained with other numbers than
    HEAD's. Every rank calls this."""
    wrong = None
    if folder is not None:
        path = folder / REFERENCE_FILE
        if (path.read_bytes() if path.is_file() else b"") != bound.record:
            wrong = (
                f"{path}: this checkpoint was trained with other numbers of a reference than those "
                "that HEAD names. Nothing was changed. To train the stage again from its start, "
                "use --redo prefer"
            )
    wrong = context.group.from_rank_0(wrong)
    if wrong is not None:
        raise PionError(wrong)


def _checked(
    context: TrainingContext, streams: Streams, start: StartingModel, bound: Bound
) -> tuple[Bound | None, str]:
    """Return these numbers, or why those of the first rows of a split are not of this model.

    The ranks go from split to split together, because those of a sharded model compute together.
    """

    def compared(batch: Batch) -> Bound:
        check_reference(start.model, batch, start.plan, "prefer", computed_in=bound.dtype)
        return bound

    with start.measuring(), _smaller_plans(context, start):
        for split, stream in streams.items():
            rows = bound.splits[split].in_stream(stream)
            # A rank that can't read its rows must say so before the others compute: they would
            # wait for its part of the weights.
            batch, wrong = _of_all_ranks(context, partial(first_batch, start, rows))
            if batch is None:
                return None, wrong
            found, wrong = _of_all_ranks(context, partial(compared, batch))
            if found is None:
                return None, wrong
    return bound, ""


def first_batch(start: StartingModel, stream: RowStream) -> Batch:
    """Return the first rows of a split, as many as are computed at once. Raises BadInput."""
    return stream.batch(range(min(start.plan.micro_batch, stream.total_rows)))


def require_base(
    context: TrainingContext, streams: Streams, start: StartingModel, bound: Bound
) -> None:
    """Raise PionError if a stage with LoRA would resume with numbers that are not of its base,
    which `start` has. Every rank calls this."""
    ready(start)
    found, wrong = _checked(context, streams, start, bound)
    if found is None:
        raise PionError(
            f"{wrong}. The checkpoints are safe, but prefer would learn with wrong numbers on this "
            "machine. Run the same command on a machine that computes as before, or train the "
            "stage again with --redo prefer"
        )


def ready(start: StartingModel) -> None:
    """Put the model where it is computed."""
    from pion.train.hardware import configure

    configure(start.plan)
    if start.shards is None:
        start.model.to(torch.device(start.plan.device))


@contextmanager
def _smaller_plans(context: TrainingContext, start: StartingModel) -> Iterator[None]:
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


@dataclass
class _Pass:
    """One pass over the `total` rows of all splits, since `began` (seconds of the run's clock).

    `chunks` is rank 0's, and None on other ranks. The numbers of the rows in `known` are known, and
    those of the rows in `computed` were computed here.
    """

    context: TrainingContext
    start: StartingModel
    chunks: Chunks | None
    total: int
    began: float
    known: int = 0
    computed: int = 0

    def of(self, split: str, stream: RowStream) -> ReferenceSums:
        """Return the numbers of a split; on other ranks than 0, none."""
        context, group = self.context, self.context.group
        done = context.patiently(partial(self.chunks.read, split)) if self.chunks else Rows()
        first = group.from_rank_0(done.stop)
        if first:
            self.known += first
            words = f"prefer: {REFERENCE_PASS}: continuing {split} after row {first:,}"
            context.report(Note(words))
        new, since = Rows(first), context.run.clock.monotonic()
        places = list(stream.places())
        for parts in batches(first, len(places), self.start.plan.micro_batch, group.world_size):
            found = self._computed(stream, [[places[row] for row in part] for part in parts])
            answers = group.of_all_ranks((found, context.should_stop()))
            rows = [row for found, _ in answers for row in found]
            check_sums(flat(rows), "the model that prefer starts from can't be a reference")
            new.numbers += rows
            stop = any(asked for _, asked in answers)
            seconds_apart = max(CHUNK_SECONDS, context.run.store.save_seconds)
            if stop or (context.run.clock.monotonic() - since >= seconds_apart):
                self._write(split, new, done)
                new, since = Rows(new.stop), context.run.clock.monotonic()
            self._tell(len(rows))
            if stop:
                raise self._stopped()
        self._write(split, new, done)
        return done.whole()

    def _tell(self, rows: int) -> None:
        """Count rows that were computed just now; say how far the pass is."""
        self.known, self.computed = self.known + rows, self.computed + rows
        seconds = self.context.run.clock.monotonic() - self.began
        eta = (self.total - self.known) * seconds / self.computed
        self.context.watchdog.progress()
        self.context.report(
            PrepareProgress(REFERENCE_PASS, self.known, "rows", self.total, "prefer", eta)
        )

    def _computed(self, stream: RowStream, parts: list[list[Place]]) -> list[list[float]]:
        """Return the numbers of this rank's rows, of those of each rank.

        A rank of a sharded model without rows computes those of rank 0, with the others.
        """
        mine, start = parts[self.context.group.rank], self.start
        if not mine and start.shards is None:
            return []
        found = sums_of(start.model, stream.batch_at(mine or parts[0]), start.plan)
        return found if mine else []

    def _write(self, split: str, new: Rows, done: Rows) -> None:
        if self.chunks is None or not new.numbers:
            return
        owned = self.context.owned
        if owned is not None:
            owned.check()
        self.context.patiently(partial(self.chunks.write, split, new))
        if owned is not None and owned.head.failed_attempts:
            self.context.patiently(owned.forget_attempts)  # this one has made progress
        done.numbers += new.numbers

    def _stopped(self) -> PionError:
        if self.context.stop_reason is not None:
            return Stopped(self.context.stop_reason)
        return Interrupted(
            "Interrupted while the reference was computed. Its numbers so far are safe. Run the "
            "same command again to continue."
        )
