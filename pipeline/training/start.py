"""Set up a training stage: find its newest checkpoint, open its data, and build its trainer.

Rank 0 chooses the checkpoint; the other ranks get what they need of it from rank 0.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.job import Job
from pipeline.job.settings import settings_of
from pipeline.machine.compile_cache import use_private_compile_cache
from pipeline.state.checkpoints.layout import METRICS, STATE
from pipeline.state.checkpoints.restore import Found, Loaded, load_folder, newest_good
from pipeline.state.records import Head
from pipeline.training.compute_plan import choose_plan
from pipeline.training.first_weights import first_model
from pipeline.training.rewind import rows_to_skip
from pipeline.training.saved_state import check_saved_state

if TYPE_CHECKING:
    from pion.data.stream import RowStream
    from pion.data.tokenizer import Tokenizer
    from pion.train.settings import ComputePlan
    from pion.train.trainer import Trainer
    from pipeline.data.shard_cache import ShardCache
    from pipeline.training.context import TrainingContext


@dataclass(frozen=True)
class Restored:
    """What rank 0 has found of a stage, and the content of the checkpoint if there is one.

    Other ranks have found nothing.
    """

    head: Head
    found: Found
    saved: Loaded | None

    @property
    def plan(self) -> dict[str, Any] | None:
        """The plan that the checkpoint was computed with."""
        return self.saved.state["plan"] if self.saved is not None else None

    @property
    def notes(self) -> list[str]:
        """What a person should hear about the choice of this checkpoint."""
        notes = [str(skip) for skip in self.found.skipped]
        if self._only_here:
            assert self.found.entry is not None
            step = self.found.entry.step
            notes.append(f"continuing from step {step:,}, which only this machine has")
        return notes

    @property
    def unwritten_metrics(self) -> str:
        """JSON lines of steps before the next one that the store may not have."""
        if not self._only_here:
            return ""
        assert self.found.folder is not None
        return (self.found.folder / METRICS).read_text(encoding="utf-8")

    @property
    def _only_here(self) -> bool:
        return self.found.entry is not None and not self.found.listed


@dataclass(frozen=True)
class StageData:
    """The prepared data of a stage, opened. `close` stops fetching shards."""

    train: RowStream
    held_out: RowStream
    tokenizer: Tokenizer
    tokenizer_file: Path
    close: Callable[[], None]


@dataclass(frozen=True)
class Setup:
    """A stage ready for its next step. `why` says where it starts."""

    trainer: Trainer
    data: StageData
    restored: Restored
    why: str

    def close(self) -> None:
        """End the trainer's and the data's threads."""
        with ExitStack() as closing:  # each is closed, whatever closing another raises
            closing.callback(self.data.close)
            closing.callback(self.trainer.close)


def start_stage(context: TrainingContext, stage: str) -> Setup:
    """Build the model and data of `stage` and restore the newest good state.

    Raises BadInput when the weights to start from do not fit the job, and PionError when nothing
    good is left of what was committed.
    """

    def bring() -> tuple[Path, Restored]:
        folder = context.workspace.bring_data(context.request.data[stage])
        return folder, _find(context, stage)

    folder, restored = context.fetch(bring)
    data = _open(context.job, folder)
    context.job.section(stage).know_rows(data.train.total_rows)
    recorded = context.group.from_rank_0(restored.plan)
    plan = choose_plan(context.job, stage, context.group, recorded, context.at_most)
    if plan.compile:
        use_private_compile_cache()
    if recorded is None:
        trainer, why = _begin(context, stage, data, plan)
    else:
        trainer, why = _resume(context, stage, data, plan, restored.saved)
    digest = context.request.digests[stage]
    skipped = rows_to_skip(restored.head, stage, digest, trainer.next_row, trainer.skipped)
    trainer.skipped = context.group.from_rank_0(skipped)
    return Setup(trainer, data, restored, why)


def _find(context: TrainingContext, stage: str) -> Restored:
    """Find the checkpoint to resume from, on rank 0."""
    if context.group.rank > 0:
        return Restored(Head(), Found(None, None, []), saved=None)
    head = context.run.read()
    assert head is not None
    found = newest_good(context.workspace, head, stage, context.request.digests[stage])
    saved = load_folder(found.folder) if found.folder else None
    if saved is not None:
        check_saved_state(saved.state, str(saved.folder / STATE))
    return Restored(head, found, saved)


def _open(job: Job, folder: Path) -> StageData:
    from pion.data.tokenizer import Tokenizer
    from pipeline.data.prepared import open_data

    data, closing = open_data(folder), ExitStack()
    stream = partial(
        data.stream, seed=job.seed, window=job.data.window, documents=job.within_documents
    )

    def shard_cache() -> ShardCache:  # called only if shards are fetched while training
        from pipeline.data.shard_cache import ShardCache, default_folder

        cache = ShardCache(default_folder(), int(job.hardware.shard_cache_gb * 1e9))
        closing.callback(cache.close)
        return cache

    return StageData(
        train=stream("train", cache=shard_cache),
        held_out=stream("held_out"),
        tokenizer=Tokenizer.from_file(data.tokenizer_path),
        tokenizer_file=data.tokenizer_path,
        close=closing.close,
    )


def _begin(
    context: TrainingContext, stage: str, data: StageData, plan: ComputePlan
) -> tuple[Trainer, str]:
    """Return a trainer before its first step, and where its weights come from."""
    from pion.train.trainer import Trainer

    model, why = first_model(context, stage)
    settings = settings_of(context.job.section(stage))
    return Trainer(model, data.train, settings, plan, rank=context.group.rank), why


def _resume(
    context: TrainingContext,
    stage: str,
    data: StageData,
    plan: ComputePlan,
    saved: Loaded | None,
) -> tuple[Trainer, str]:
    """Return a trainer in the state that rank 0 has `saved`."""
    from pion.model.decoder import Decoder
    from pion.train.trainer import Trainer, TrainState

    config = context.job.model_config_resolved()
    settings = settings_of(context.job.section(stage))
    model = Decoder.from_state(config, saved.model) if saved else Decoder(config)
    trainer = Trainer(model, data.train, settings, plan, rank=context.group.rank)
    trainer.load(TrainState(saved.model, saved.optimizer, saved.state) if saved else None)
    return trainer, f"continues after step {trainer.step:,}"
