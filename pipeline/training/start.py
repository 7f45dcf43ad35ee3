"""Where a training stage starts from: a checkpoint, another model, the stage before, or nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.job.settings import settings_of

if TYPE_CHECKING:
    from pion.config import ModelConfig
    from pion.data.stream import RowStream
    from pion.data.tokenizer import Tokenizer
    from pion.model.decoder import Decoder
    from pion.train.settings import ComputePlan
    from pion.train.trainer import Trainer
    from pipeline.state.checkpoints.restore import Found
    from pipeline.state.records import Head
    from pipeline.state.run_state import RunState
    from pipeline.state.workspace import Workspace
    from pipeline.training.group import Group
    from pipeline.training.train_request import TrainRequest


@dataclass
class Setup:
    """A stage ready for its next step."""

    trainer: Trainer
    held_out: RowStream
    tokenizer: Tokenizer
    tokenizer_file: Path
    why: str
    found: Found | None = None
    """The checkpoint that it continues from; None on ranks other than 0."""
    metrics: str = ""
    """JSON lines of steps before this one that the store may not have."""
    notes: list[str] = field(default_factory=list)
    closers: list[Callable[[], None]] = field(default_factory=list)

    def close(self) -> None:
        """Stop fetching shards."""
        for close in self.closers:
            close()


Result = TypeVar("Result")


class Fetch(Protocol):
    """Does some work that asks stores for something, and returns what it brings."""

    def __call__(self, work: Callable[[], Result], /) -> Result: ...


def start_stage(
    request: TrainRequest,
    run: RunState,
    workspace: Workspace,
    stage: str,
    group: Group,
    patiently: Fetch,
) -> Setup:
    """Build the model and data of `stage` and restore the newest good state.

    Rank 0 chooses the checkpoint and sends it to the others. `patiently` repeats what a store that
    is down has failed, and keeps the watchdog waiting. Raises BadInput when the weights to start
    from do not fit the job, and PionError when nothing good is left of what was committed.
    """
    from pion.data.tokenizer import Tokenizer
    from pion.model.decoder import Decoder
    from pion.train.trainer import Trainer, TrainState
    from pipeline.data.prepared import open_data
    from pipeline.state.checkpoints.layout import METRICS
    from pipeline.state.checkpoints.restore import load_folder, newest_good
    from pipeline.training.rewind import rows_to_skip

    def fetch(work: Callable[[], Result]) -> Result:
        def bring() -> Result:
            brought = work()
            group.wait_for_all()
            return brought

        return patiently(bring)

    def look() -> tuple[Path, Head | None, Found | None]:
        folder = workspace.bring_data(request.data[stage])
        if group.rank > 0:
            return folder, None, None
        head = run.read()
        assert head is not None
        return folder, head, newest_good(workspace, head, stage, digest)

    job, digest = request.load_job(), request.digests[stage]
    folder, head, found = fetch(look)
    saved, metrics = None, ""
    data = open_data(folder)
    closers: list[Callable[[], None]] = []
    window = job.data.window
    stream = data.stream("train", seed=job.seed, window=window, cache=_shard_cache(job, closers))
    held_out = data.stream("held_out", seed=job.seed, window=window)

    notes: list[str] = []
    if found is not None:
        saved = load_folder(found.folder) if found.folder else None
        notes = [str(skip) for skip in found.skipped]
        if not found.listed and found.entry:
            notes.append(f"going on from step {found.entry.step:,}, which only this machine has")
            assert found.folder is not None
            metrics = (found.folder / METRICS).read_text(encoding="utf-8")
    recorded = group.from_rank_0(saved.state["plan"] if saved else None)
    plan = choose_plan(job, stage, group, recorded)
    # Machines of a cluster may differ, and all ranks must compute alike.
    micro_batch, recompute = group.from_rank_0((plan.micro_batch, plan.recompute))
    plan = dataclasses.replace(plan, micro_batch=micro_batch, recompute=recompute)
    if recorded is None:
        model, why = _starting_model(job, run, stage, fetch)
    else:
        config = job.model_config_resolved()
        model = Decoder.from_state(config, saved.model) if saved else Decoder(config)
        why = "continues"
    trainer = Trainer(model, stream, settings_of(job.section(stage)), plan, rank=group.rank)
    if recorded is not None:
        trainer.load(TrainState(saved.model, saved.optimizer, saved.state) if saved else None)
        why = f"continues after step {trainer.step:,}"
    if head is not None:
        skip = rows_to_skip(head, stage, digest, trainer.next_row, trainer.skipped)
        trainer.skipped = skip
    trainer.skipped = group.from_rank_0(trainer.skipped)
    return Setup(
        trainer,
        held_out,
        Tokenizer.from_file(data.tokenizer_path),
        data.tokenizer_path,
        why,
        found=found,
        metrics=metrics,
        notes=notes,
        closers=closers,
    )


def choose_plan(job: Job, stage: str, group: Group, recorded: dict[str, Any] | None) -> ComputePlan:
    """How this machine computes the stage.

    The plan recorded in the checkpoint is used again where the hardware and the job allow, because
    only then is the resumed run bit-identical to an unbroken one.
    """
    import torch

    from pion.train.hardware import pick_device, pick_dtype, total_memory
    from pion.train.micro_batch import Workload, choose_micro_batch
    from pion.train.settings import ComputePlan

    section, hardware = job.section(stage), job.hardware
    device = pick_device()
    rows_per_rank = -(-section.global_batch // group.world_size)
    plan = ComputePlan(
        device=str(device),
        dtype=pick_dtype(hardware.dtype, device),
        world_size=group.world_size,
        compile=hardware.compile,
        threads=torch.get_num_threads(),
        deterministic=hardware.deterministic,
        micro_batch=min(hardware.micro_batch or rows_per_rank, rows_per_rank),
        recompute=bool(hardware.recompute),
    )
    before = ComputePlan.from_dict(recorded) if recorded is not None else None
    if before is not None:
        derived = {"micro_batch": hardware.micro_batch, "recompute": hardware.recompute}
        free = {name: getattr(before, name) for name, asked in derived.items() if asked is None}
        if before == dataclasses.replace(plan, **free):
            return before
    work = Workload(
        job.model_config_resolved(),
        seq_len=job.sft_seq_len if stage == "sft" else job.data.seq_len,
        dtype=plan.dtype,
        optimizer=section.optimizer,
        device=device.type,
    )
    micro_batch, recompute = choose_micro_batch(
        work,
        rows_per_rank=rows_per_rank,
        memory_bytes=total_memory(device) // (1 if device.type == "cuda" else group.world_size),
        recompute=hardware.recompute,
    )
    if hardware.micro_batch is None:
        plan = dataclasses.replace(plan, micro_batch=micro_batch)
    return dataclasses.replace(plan, recompute=recompute)


def _shard_cache(job: Job, closers: list[Callable[[], None]]) -> Any:
    """A place for streamed shards, made only when the data needs one."""

    def make() -> Any:
        from pipeline.data.shard_cache import ShardCache, default_folder

        cache = ShardCache(default_folder(), int(job.hardware.shard_cache_gb * 1e9))
        closers.append(cache.close)
        return cache

    return make


def _starting_model(job: Job, run: RunState, stage: str, fetch: Fetch) -> tuple[Decoder, str]:
    """The weights of a stage's first step, the same on every rank, and where they come from."""
    import torch

    from pion.load import load_decoder
    from pion.model.decoder import Decoder

    section = job.section(stage)
    if section.init_from is not None:
        return _model_from(job, section.init_from, fetch), f"starts from {section.init_from}"
    if stage == "sft":
        return load_decoder(fetch(lambda: _pretrained(run))), "starts from the pretrained model"
    torch.manual_seed(job.seed)
    return Decoder(job.model_config_resolved()), "starts from random weights"


def _pretrained(run: RunState) -> Path:
    """The folder with the weights that pretraining came to."""
    from pipeline.models.bring import bring_model

    head = run.read()
    assert head is not None
    key = head.stages["pretrain"].checkpoint
    assert key is not None
    return bring_model(run, key)


def _model_from(job: Job, source: str, fetch: Fetch) -> Decoder:
    """The job's decoder with the weights `init_from` names; BadInput if it is another model."""
    from pion.model.decoder import Decoder
    from pipeline.models.find import find_model
    from pipeline.models.load import load_model

    path = job.input_path(source)
    found = load_model(fetch(lambda: find_model(str(path) if path.exists() else source)))
    config = job.model_config_resolved()
    require_same_model(config, found.config, source)
    return Decoder.from_state(config, found.state_dict())


def require_same_model(job: ModelConfig, model: ModelConfig, source: str) -> None:
    """Raise BadInput if the job's model is not the one that `init_from: source` names."""
    wanted, given = dataclasses.asdict(job), dataclasses.asdict(model)
    # Everything but the context's length and how random weights are drawn.
    names = sorted(wanted.keys() - {"seq_len", "init_std", "family"})
    wrong = [f"{n}: job {wanted[n]}, model {given[n]}" for n in names if wanted[n] != given[n]]
    if wrong:
        raise BadInput(
            f"init_from {source}: the model there is another one ({'; '.join(wrong)}). Nothing "
            "was lost. Make the job's `model` section fit it."
        )
