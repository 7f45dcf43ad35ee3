"""Set up a training stage: find its newest checkpoint, open its data, and build its trainer.

Rank 0 chooses the checkpoint; the other ranks get what they need of it from rank 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

from annotated_types import Len
from typing_extensions import TypedDict

from pipeline.job import Job
from pipeline.job.train_sections import settings_of
from pipeline.machine.folders import use_private_compile_cache
from pipeline.state.checkpoints.layout import METRICS, STATE
from pipeline.state.checkpoints.restore import Found, Loaded, load_folder, newest_good
from pipeline.state.record_json import Count, build, open_record
from pipeline.state.records import Head
from pipeline.state.run_data import bring_data
from pipeline.training.compute_plan import choose_plan
from pipeline.training.first_weights import cost_of_rounding, first_model, frozen_base
from pipeline.training.rewind import rows_to_skip

if TYPE_CHECKING:
    from pion.data.chat.chat_format import ChatFormat
    from pion.data.stream import RowStream
    from pion.data.tokens.tokenizer import Tokenizer
    from pion.lora import Adapter
    from pion.model.decoder import Decoder
    from pion.train.settings import ComputePlan
    from pion.train.trainer import Trainer, TrainState
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
    chat_format: ChatFormat
    folder: Path
    close: Callable[[], None]


@dataclass(frozen=True)
class Setup:
    """A stage ready for its next step.

    `why` says where it starts. `adapter` is what LoRA trains; None: the whole model is trained.
    """

    trainer: Trainer
    data: StageData
    restored: Restored
    why: str
    adapter: Adapter | None = None

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
    from pion.train.trainer import Trainer

    def bring() -> tuple[Path, Restored]:
        head = context.run.read()
        assert head is not None
        folder = bring_data(context.run, head, stage, context.request.data[stage])
        return folder, _find(context, stage)

    folder, restored = context.fetch(bring)
    data = _open(context.job, folder)
    context.job.section(stage).know_rows(data.train.total_rows)
    recorded = context.group.from_rank_0(restored.plan)
    plan = choose_plan(context.job, stage, context.group, recorded, context.at_most)
    if plan.compile:
        use_private_compile_cache()
    model, why, adapter = _model(context, stage, data, plan, restored.saved)
    settings = settings_of(context.job.section(stage))
    trainer = Trainer(model, data.train, settings, plan, rank=context.group.rank)
    if recorded is not None:
        trainer.load(_state(restored.saved))
        why = f"continues after step {trainer.step:,}"
    digest = context.request.digests[stage]
    skipped = rows_to_skip(restored.head, stage, digest, trainer.next_row, trainer.skipped)
    trainer.skipped = context.group.from_rank_0(skipped)
    return Setup(trainer, data, restored, why, adapter)


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
    from pion.data.chat.chat_format import ChatFormat
    from pion.data.tokens.tokenizer import Tokenizer
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

    tokenizer = Tokenizer.from_file(data.tokenizer_path)
    chat_format = ChatFormat(data.tokenizer_path, tokenizer)
    closing.callback(chat_format.close)
    return StageData(
        train=stream("train", cache=shard_cache),
        held_out=stream("held_out"),
        tokenizer=tokenizer,
        chat_format=chat_format,
        folder=folder,
        close=closing.close,
    )


def _model(
    context: TrainingContext,
    stage: str,
    data: StageData,
    plan: ComputePlan,
    saved: Loaded | None,
) -> tuple[Decoder, str, Adapter | None]:
    """Return the model to train, where its weights come from, and what LoRA trains of it.

    Of a stage that resumes, rank 0 has `saved` the checkpoint, and the trainer loads its weights.
    """
    from pion.model.decoder import Decoder

    if context.job.lora(stage) is not None:
        return _with_additions(context, stage, data, plan, saved)
    resumes = context.group.from_rank_0(saved is not None)
    if not resumes:
        return *first_model(context, stage), None
    config = context.job.model_config_resolved()
    model = Decoder.from_state(config, saved.model) if saved else Decoder(config)
    return model, "", None


def _with_additions(
    context: TrainingContext,
    stage: str,
    data: StageData,
    plan: ComputePlan,
    saved: Loaded | None,
) -> tuple[Decoder, str, Adapter]:
    """Return a frozen base with LoRA's additions. The base is found again for each attempt.

    Raises BadInput on every rank if it is not the base of the checkpoint `saved`.
    """
    from pion.lora import Adapter, BaseModel, read_record, require_base
    from pion.model.lora_projections import adapted
    from pion.train.hardware import torch_dtype

    lora = context.job.lora(stage)
    assert lora is not None
    base, identity = frozen_base(context, stage)
    recorded = None
    if saved is not None:
        recorded = read_record(saved.folder) or Adapter(lora, BaseModel("an unknown base", ""))
    recorded = context.group.from_rank_0(recorded)
    if recorded is not None:
        where = f"the newest checkpoint of {stage}"
        require_base(recorded.base, str(identity.sha256), where)
    why = f"adds LoRA of rank {lora.rank} to {identity.name}"
    if lora.base_dtype is not None and recorded is None:
        why += f", {cost_of_rounding(context, base, data.held_out, data.tokenizer, plan)}"
    if recorded is None:
        warning = _never_stops(base, data)
        why += "" if warning is None else f". Warning: {warning}"
    model = adapted(base, lora, seed=context.job.seed, dtype=torch_dtype(plan.dtype))
    return model, why, Adapter(lora, identity)


def _never_stops(base: Decoder, data: StageData) -> str | None:
    """Return a warning if LoRA can't teach the base the special tokens of the data."""
    from pion.evaluation.untrained_rows import never_stops

    present = set(data.train.row(0).tokens.tolist())
    specials = data.tokenizer.special_ids.items()
    shown = {token: text for text, token in specials if token in present}
    return never_stops(base.embed.weight, shown)


def _state(saved: Loaded | None) -> TrainState | None:
    from pion.train.trainer import TrainState

    return TrainState(saved.model, saved.optimizer, saved.state) if saved else None


class _Optimizer(TypedDict):
    steps: Count
    groups: NotRequired[dict[str, Count]]


class _Plan(TypedDict):
    device: NotRequired[str]
    dtype: NotRequired[str]
    micro_batch: NotRequired[Count]
    world_size: NotRequired[Count]
    recompute: NotRequired[bool]
    compile: NotRequired[bool]
    threads: NotRequired[Count | None]
    deterministic: NotRequired[bool]


@open_record
class _State(TypedDict):
    step: Count
    next_row: Count
    skipped: list[Annotated[list[Count], Len(2, 2)]]
    recent_losses: NotRequired[list[float]]
    optimizer: _Optimizer
    rng: Mapping[str, str]
    plan: _Plan


def check_saved_state(state: Mapping[str, Any], where: str) -> None:
    """Raise `Damaged` if a trainer can't continue from `state`, the content of the file `where`."""
    build(_State, state, where)
