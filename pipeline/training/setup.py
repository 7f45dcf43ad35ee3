"""Set up a training stage: find its newest checkpoint, open its data, and build its trainer.

Rank 0 chooses the checkpoint; the other ranks get what they need of it from rank 0.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired

from annotated_types import Len
from typing_extensions import TypedDict

from pion.config.lora import RECORD
from pion.errors import BadInput
from pion.train.settings import ComputePlan
from pipeline.console.messages import Note, Sample
from pipeline.data.fingerprint import APART
from pipeline.data.tokenizer import needed_files
from pipeline.job.digest import model_inputs
from pipeline.job.stages import CONVERSING
from pipeline.job.train_sections import settings_of
from pipeline.machine.folders import use_private_compile_cache
from pipeline.state.checkpoints.layout import METRICS, STATE
from pipeline.state.checkpoints.restore import FoundCheckpoint, Loaded, load_folder, newest_good
from pipeline.state.head import Head
from pipeline.state.record_json import Count, build, open_record, to_json
from pipeline.state.shared.folder import REFERENCE_FILE, bring_data
from pipeline.state.shared.speeds import PastSpeed, keep_train_speed
from pipeline.training.advice import BusyCores, Work
from pipeline.training.compute_plan import choose_plan
from pipeline.training.hop_receipt import record_machine, record_step_down
from pipeline.training.prompts import require_signal, with_prompts
from pipeline.training.rewind import rows_to_skip
from pipeline.training.stage_data import StageData, open_stage_data
from pipeline.training.stage_model import StageModel, stage_model

if TYPE_CHECKING:
    from pion.config.lora import Adapter
    from pion.config.model_config import ModelConfig
    from pion.data.chat.chat_format import ChatFormat
    from pion.evaluation.held_out import Evaluation
    from pion.model.decoder import Decoder
    from pion.train.smaller_plan import StepDown
    from pion.train.trainer import Trainer
    from pipeline.training.context import TrainingContext
    from pipeline.training.reference.columns import Reference


# Tokens of a sample, at most.
SAMPLE_TOKENS = 48


@dataclass(frozen=True)
class Restored:
    """What rank 0 has found of a stage, and the content of the checkpoint if there is one.

    Other ranks have found nothing. Once the stage is set up, the content is let go.
    """

    head: Head
    found: FoundCheckpoint
    saved: Loaded | None

    @property
    def notes(self) -> list[str]:
        """What a person should hear about the choice of this checkpoint."""
        notes, entry = list(self.found.skipped), self.found.entry
        if entry is not None and not self.found.listed:
            notes.append(f"continuing from step {entry.step:,}, which only this machine has")
        return notes

    @property
    def unwritten_metrics(self) -> str:
        """JSON lines of steps before the next one that the store may not have."""
        if self.found.folder is None or self.found.listed:
            return ""
        return (self.found.folder / METRICS).read_text(encoding="utf-8")


@dataclass(frozen=True)
class Setup:
    """A stage ready for its next step, and all that the loop and rank 0 ask of it.

    `why` says where it starts. `adapter` is what LoRA trains; None: the whole model is trained.
    `reference` has the numbers of the model that this one is compared with; None: there is none.
    """

    context: TrainingContext
    stage: str
    trainer: Trainer
    data: StageData
    restored: Restored
    why: str
    adapter: Adapter | None = None
    reference: Reference | None = None

    @property
    def on_cpu(self) -> bool:
        """Whether the stage trains on the cores that saving uses too."""
        return self.trainer.device.type == "cpu"

    def files(self, state: Mapping[str, Any]) -> dict[str, bytes]:
        """Return the small files that the checkpoint of a state includes, by name."""
        files = {
            "config.json": to_json(self.trainer.config_at(state["next_row"]).to_dict()).encode(),
            **needed_files(self.data.folder),
        }
        if self.reference is not None:
            files[REFERENCE_FILE] = self.reference.record
        return files if self.adapter is None else files | {RECORD: self.adapter.to_json()}

    def evaluate(self, on_batch: Callable[[], None]) -> Evaluation:
        """Return the loss on the job's first held-out rows, or on those of each source. Every rank
        calls this."""
        from pion.evaluation.held_out import mean_of_sources

        tokenizer, total = self.data.tokenizer, self.data.held_out.total_rows

        def of(rows: range) -> Evaluation:
            return self.trainer.evaluate(
                self.data.fed["held_out"],
                rows,
                self.trainer.plan.micro_batch,
                tokenizer.end_of_text,
                tokenizer.vocab_size,
                on_batch,
            )

        if self.data.sources:
            return mean_of_sources({name: of(rows) for name, rows in self.data.sources.items()})
        return of(range(min(self.context.job.evaluate.rows, total)))

    def samples(self, prompts: Sequence[str], on_token: Callable[[], None]) -> list[Sample | Note]:
        """Return what the model writes after each prompt, or why it can't.

        Every rank of a sharded model calls this.
        """
        model, chat_format = self.trainer.model, self.data.chat_format
        step, chat = self.trainer.step, self.stage in CONVERSING
        notes: list[Sample | Note] = []
        readable: list[tuple[str, list[int]]] = []
        for prompt in prompts:
            try:
                readable.append((prompt, prompt_ids(model, chat_format, prompt, chat=chat)))
            except BadInput as error:  # for example, a prompt longer than the context
                notes.append(Note(f"no sample for {prompt[:40]!r}: {error}"))
        try:
            ids = [ids for _, ids in readable]
            with self.trainer.measuring():
                texts = sample_texts(model, chat_format, ids, chat=chat, on_token=on_token)
        except BadInput as error:
            return [*notes, Note(f"no samples after step {step}: {error}")]
        written = zip(readable, texts, strict=True)
        return [*notes, *(Sample(self.stage, step, prompt, text) for (prompt, _), text in written)]

    @property
    def shows_answers(self) -> bool:
        """Whether this step is one of the six of a stage of rewards whose answers are shown."""
        done, section = self.trainer.step - 1, self.context.job.section(self.stage)
        parts = max(1, section.total_steps - 1)
        return self.data.prompts is not None and done * 5 // parts > (done - 1) * 5 // parts

    def best_and_worst(self) -> Sample | None:
        """Return the best and the worst answer to a prompt of the last step, if they are shown."""
        if self.data.prompts is None or not self.shows_answers:
            return None
        said = self.data.prompts["train"].said()
        most = max(said, key=lambda one: max(one.answers)[0] - min(one.answers)[0])
        return Sample(self.stage, self.trainer.step, most.prompt, most.best_and_worst())

    def busy_cores(self) -> BusyCores | None:
        """Return what looks at the cores while the stage trains on them; None on a GPU."""
        plan = self.trainer.plan
        if plan.threads is None or not self.on_cpu:
            return None
        tokens = plan.micro_batch * self.context.job.seq_len(self.stage)
        work = Work(tokens, self.trainer.model.config.d_model)
        return BusyCores(work, plan.threads, self.context.report)

    def record_machine(self, epoch: int, change: StepDown | None = None) -> list[str]:
        """Record the machine and the plan of an attempt, or a `change` of its plan; return the
        receipt."""
        if change is None:
            changes, self.context.compiler_changes = self.context.compiler_changes, []
            return record_machine(self.context, epoch, self.stage, self.trainer, changes)
        return record_step_down(self.context, epoch, self.stage, self.trainer, change)

    def keep_speed(self, tokens_per_second: float) -> None:
        """Keep the speed of one worker for the plans of later jobs. Raises StoreError."""
        from pion.train.hardware import device_name

        if os.environ.get(APART):  # `pion prove` leaves nothing behind
            return
        run, job = self.context.run, self.context.job
        speed = PastSpeed(
            run=run.name,
            at=run.clock.now(),
            device=device_name(self.trainer.device),
            seq_len=job.seq_len(self.stage),
            tokens_per_second=tokens_per_second / self.trainer.plan.world_size,
            lora=self.adapter is not None,
        )
        keep_train_speed(run.store, model_inputs(job.model_config_resolved()), speed)

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
    from pion.train.hardware import configure
    from pipeline.data.shard_cache import fetching_from
    from pipeline.training.reference.of_stage import with_reference

    def bring() -> tuple[Path, str, Restored]:
        head = context.run.read()
        assert head is not None
        return bring_data(context.run, head, stage), head.data[stage], _find(context, stage, head)

    folder, key, restored = context.fetch(bring)
    data = open_stage_data(
        context.job, stage, folder, fetching_from(context.run.store, key, context.patiently)
    )
    section, saved = context.job.section(stage), restored.saved
    section.know_rows(data.train.total_rows)
    recorded = context.group.from_rank_0(None if saved is None else saved.state["plan"])
    plan = choose_plan(context.job, stage, context.group, recorded, context.at_most)
    if plan.compile:
        use_private_compile_cache()
    configure(plan)  # before anything computes: cuBLAS reads its settings once
    start, reference = stage_model(context, stage, data, plan, saved), None
    _tell_card(context, stage, plan, start.model.config)
    if section.needs_reference:
        streams, resumes = {"train": data.train, "held_out": data.held_out}, recorded is not None
        reference, start = with_reference(context, streams, start, saved, resumes=resumes)
        train, held_out = (reference.streams[split] for split in streams)
        data = dataclasses.replace(data, train=train, held_out=held_out)
    if section.sampled:
        data = with_prompts(context, data)
    trainer, why = _trainer(context, stage, data, start), start.why
    if recorded is not None:
        why = _resume(context, trainer, restored)
    elif data.prompts is not None:
        require_signal(context, trainer, data.prompts["train"])
    digest = context.request.digests[stage]
    trainer.skipped = context.group.from_rank_0(
        rows_to_skip(restored.head, stage, digest, trainer.next_row, trainer.skipped)
    )
    # The trainer has copied what it needs. Mapped files keep their room on the disk, also deleted.
    restored = dataclasses.replace(restored, saved=None)
    return Setup(context, stage, trainer, data, restored, why, start.adapter, reference)


def _tell_card(
    context: TrainingContext, stage: str, plan: ComputePlan, config: ModelConfig
) -> None:
    """Say what a person should know of how the card computes the stage."""
    import torch

    from pion.model.attention.masks import masked_by_flex
    from pion.train.card import words_about_attention, words_about_bf16
    from pion.train.hardware import words_about_cpu

    device, documents = torch.device(plan.device), context.job.has_documents(stage)
    flex = masked_by_flex(config, device, documents=documents)
    for words in (
        words_about_cpu(device, context.job.hardware.dtype),
        words_about_bf16(device, context.job.hardware.dtype),
        words_about_attention(device, flex=flex),
    ):
        if words is not None:
            context.report(Note(words))


def _trainer(
    context: TrainingContext,
    stage: str,
    data: StageData,
    start: StageModel,
) -> Trainer:
    from pion.train.trainer import Trainer

    trainer = Trainer(
        start.model,
        data.fed["train"],
        settings_of(context.job.section(stage)),
        start.plan,
        rank=context.group.rank,
        weights=start.weights,
        shards=start.shards,
    )
    # A model in parts can't sample answers.
    trainer.may_divide = context.job.hardware.sharded is None and start.plan.rollout_rows is None
    return trainer


def _resume(context: TrainingContext, trainer: Trainer, restored: Restored) -> str:
    """Let the trainer continue from a checkpoint, and say where.

    Rank 0 has the state, and sends the others what they need of it.
    """
    from pion.train.trainer import TrainState

    saved = restored.saved
    whole = None if saved is None else TrainState(saved.model, saved.optimizer, saved.state)
    trainer.load(whole)
    return f"continues after step {trainer.step:,}"


def _find(context: TrainingContext, stage: str, head: Head) -> Restored:
    """Find the checkpoint to resume from, on rank 0."""
    if context.group.rank > 0:
        return Restored(Head(), FoundCheckpoint(None, None, []), saved=None)
    found = newest_good(context.workspace, head, stage, context.request.digests[stage])
    saved = load_folder(found.folder) if found.folder else None
    if saved is not None:
        build(SavedState, saved.state, str(saved.folder / STATE))
    return Restored(head, found, saved)


class _Optimizer(TypedDict):
    steps: Count
    groups: NotRequired[dict[str, Count]]


@open_record
class SavedState(TypedDict):
    """What a trainer continues from: the content of a checkpoint's `STATE`."""

    step: Count
    next_row: Count
    skipped: list[Annotated[list[Count], Len(2, 2)]]
    recent_losses: NotRequired[list[float]]
    optimizer: _Optimizer
    rng: Mapping[str, str]
    plan: ComputePlan


def prompt_ids(model: Decoder, chat_format: ChatFormat, prompt: str, *, chat: bool) -> list[int]:
    """Return the ids that the model continues; with `chat`, the prompt is a user's message.

    Raises BadInput if the prompt is too long for the model, or if its chat template refuses it.
    """
    from pion.generation.text import checked_prompt

    if chat:
        ids = chat_format.prompt_ids([{"role": "user", "content": prompt}])
    else:
        ids = chat_format.tokenizer.prompt(prompt)
    return checked_prompt(ids, model.config)


def sample_texts(
    model: Decoder,
    chat_format: ChatFormat,
    prompts: list[list[int]],
    *,
    chat: bool,
    on_token: Callable[[], None],
) -> list[str]:
    """Return the model's continuation of each of the prompts: with `chat`, its answers.

    `on_token` is called after each token. Raises BadInput if the model predicts NaN or infinity.
    """
    from pion.generation.generate import generate_batch

    tokenizer = chat_format.tokenizer
    new: list[list[int]] = [[] for _ in prompts]
    for number, token in generate_batch(
        model,
        prompts,
        stop_ids=chat_format.stop_ids if chat else (tokenizer.end_of_text,),
        vocab_size=tokenizer.vocab_size,
        max_tokens=SAMPLE_TOKENS,
        seed=0,
    ):
        if token is not None:
            new[number].append(token)
            on_token()
    return [tokenizer.decode(ids) for ids in new]
