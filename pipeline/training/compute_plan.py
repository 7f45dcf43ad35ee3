"""Choose how this machine computes a stage: device, dtype, micro-batch, recomputation.

Whether the compiler works is found out before the data arrives. While data is prepared or
downloaded, the machine is paid for already. So a compiler that fails is found in seconds, and the
stages train by a plan that works.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pion.config.lora import Lora
from pion.data.order import rows_per_rank
from pion.errors import BadInput
from pion.train.settings import AS_MANY_AS_FIT
from pipeline.console.messages import Note
from pipeline.job import Job
from pipeline.job.hardware_section import ALONE
from pipeline.job.sft_and_lora_sections import how_to_use_lora
from pipeline.job.stages import CONVERSING
from pipeline.job.train_sections import phases_of
from pipeline.machine.folders import use_private_compile_cache
from pipeline.machine.gpus import gpu_count
from pipeline.training.context import phase
from pipeline.training.train_request import Group

if TYPE_CHECKING:
    from pipeline.training.context import TrainingContext

Dtype = Literal["bfloat16", "float32"]

if TYPE_CHECKING:
    import torch

    from pion.train.settings import ComputePlan
    from pion.train.workload import Workload


# What a compiler that fails gives up, one after the other (pion/train/smaller_plan.py). A record
# leaves out a field that is true.
COMPILED = ("compile", "combo_kernels", "flex_attention")


def choose_plan(
    job: Job,
    stage: str,
    group: Group,
    recorded: dict[str, Any] | None,
    at_most: dict[str, Any] | None = None,
) -> ComputePlan:
    """Return the plan of `stage` on this machine. All ranks compute alike, although their cards may
    differ: with the micro-batch of the smallest, and in a dtype that all of them have.

    The plan `recorded` in the checkpoint is used again where hardware and job allow: only then is
    the resumed run bit-identical to an unbroken one. `at_most` is the record of the plan to try
    after a larger one has failed here.
    """
    from pion.train.hardware import pick_device, pick_dtype

    device = pick_device()
    dtypes = group.of_all_ranks(pick_dtype(job.hardware.dtype, device))
    slowest: Dtype = "float32" if "float32" in dtypes else "bfloat16"
    asked = _asked_plan(job, stage, group.world_size, device, slowest)
    plan = _choose_alone(job, stage, asked, device, recorded)
    failed_whole = at_most is not None and at_most.get("sharded", False)
    sharded = any(group.of_all_ranks(plan.sharded or failed_whole))
    if sharded and not plan.sharded:  # it does not fit here, or on another rank's card
        divided = dataclasses.replace(
            plan, sharded=True, micro_batch=asked.micro_batch, recompute=asked.recompute
        )
        plan = _choose_alone(job, stage, divided, device, None)
    if at_most is not None:
        plan = dataclasses.replace(
            plan,
            micro_batch=min(plan.micro_batch, at_most["micro_batch"]),
            recompute=plan.recompute or at_most["recompute"],
            **{name: getattr(plan, name) and at_most.get(name, True) for name in COMPILED},
        )
    plans = group.of_all_ranks(
        [getattr(plan, name) for name in ("micro_batch", "recompute", "residual", *COMPILED)]
    )
    micro_batches, recomputes, residuals, *compiled = zip(*plans, strict=True)
    alike: dict[str, Any] = {n: all(values) for n, values in zip(COMPILED, compiled, strict=True)}
    alike["residual"] = "float32" if "float32" in residuals else "bfloat16"
    return dataclasses.replace(
        plan, micro_batch=min(micro_batches), recompute=any(recomputes), **alike
    )


def _choose_alone(
    job: Job,
    stage: str,
    asked: ComputePlan,
    device: torch.device,
    recorded: dict[str, Any] | None,
) -> ComputePlan:
    from pion.train.settings import ComputePlan

    before = ComputePlan.from_dict(recorded) if recorded is not None else None
    if before is not None and before == _left_open_as_in(before, asked, job):
        return before
    work, micro_batch, recompute = _fitting_work(job, stage, asked, device)
    if job.hardware.micro_batch is None:
        asked = dataclasses.replace(asked, micro_batch=micro_batch)
    return dataclasses.replace(asked, recompute=recompute, sharded=work.sharded)


def _asked_plan(
    job: Job, stage: str, world_size: int, device: torch.device, dtype: Dtype
) -> ComputePlan:
    """Return the plan that job and hardware ask for, with guesses for what they leave open."""
    import torch

    from pion.train.hardware import pick_compile, pick_residual, total_memory
    from pion.train.rewards import rollout_rows
    from pion.train.settings import ComputePlan

    hardware = job.hardware
    if hardware.sharded and world_size == 1:
        raise BadInput(
            f"hardware.{ALONE.format(workers=1)}. With workers unset, there is one per GPU"
        )
    section = job.section(stage)
    rows = rows_per_rank(section.rows_of_step(job.seq_len(stage)), world_size)
    return ComputePlan(
        device=str(device),
        dtype=dtype,
        residual=pick_residual(hardware.residual, dtype, device),
        world_size=world_size,
        compile=pick_compile(hardware.compile, device, deterministic=hardware.deterministic),
        threads=torch.get_num_threads(),
        deterministic=hardware.deterministic,
        micro_batch=min(hardware.micro_batch or rows, rows),
        recompute=bool(hardware.recompute),
        sharded=bool(hardware.sharded),
        rollout_rows=rollout_rows(
            job.model_config_resolved(),
            job.seq_len(stage),
            dtype,
            job.section(stage).answers_of_rank(world_size),
            total_memory(device),
        )
        or None,
    )


def _left_open_as_in(before: ComputePlan, asked: ComputePlan, job: Job) -> ComputePlan:
    """Return `asked` with what the job leaves open as it was `before`."""
    compiled = job.hardware.compile
    in_job: dict[str, object] = {
        "micro_batch": job.hardware.micro_batch,
        "recompute": job.hardware.recompute,
        "compile": None if compiled == "auto" else compiled,
        # With `compile: true`, everything that once failed is tried again.
        "combo_kernels": True if compiled is True else None,
        "flex_attention": True if compiled is True else None,
    }
    if before.dtype == asked.dtype:
        in_job["residual"] = None if job.hardware.residual == "auto" else asked.residual
    if asked.world_size == before.world_size:
        in_job["sharded"] = job.hardware.sharded
    left_open = {name: getattr(before, name) for name, value in in_job.items() if value is None}
    return dataclasses.replace(asked, **left_open)


def _fitting_work(
    job: Job, stage: str, plan: ComputePlan, device: torch.device
) -> tuple[Workload, int, bool]:
    """Return the work as ranks share it, the micro-batch that fits into memory, and whether
    activations are recomputed."""
    from pion.train.hardware import cuda_capability, total_memory
    from pion.train.micro_batch import DoesNotFit, choose_sharing
    from pion.train.phases import config_of_largest_phase, only_apart
    from pion.train.rewards import rollout_bytes
    from pion.train.workload import Workload

    section, config = job.section(stage), job.model_config_resolved()
    work = Workload(
        config_of_largest_phase(phases_of(section), config),
        seq_len=job.seq_len(stage),
        dtype=plan.dtype,
        optimizer=section.optimizer,
        device=device.type,
        documents=job.has_documents(stage),
        sequences=section.most_sequences(job.seq_len(stage)),
        compile=plan.compile,
        residual=plan.residual,
        lora=job.lora(stage),
        only_apart=only_apart(phases_of(section), config),
        capability=cuda_capability(device),
        sampling=rollout_bytes(config, job.seq_len(stage), plan.dtype, plan.rollout_rows or 0),
        ranks=plan.world_size,
    )
    sharing = 1 if device.type == "cuda" else plan.world_size  # ranks share a machine's memory
    choose = partial(
        choose_sharing,
        # A model in parts can't sample.
        sharded=plan.rollout_rows is None and (plan.sharded or job.hardware.sharded),
        rows_per_rank=rows_per_rank(
            job.section(stage).rows_of_step(job.seq_len(stage)), plan.world_size
        ),
        memory_bytes=total_memory(device) // sharing,
        recompute=job.hardware.recompute,
        joined=job.joined(stage),
    )
    try:
        return choose(work)
    except DoesNotFit as error:
        other = job.same_lora_as(stage)
        lora = Lora() if other is None else job.lora(other)
        by_lora = dataclasses.replace(work, lora=lora, optimizer="adamw")
        if stage not in CONVERSING or work.lora is not None or not _can_be_chosen(choose, by_lora):
            raise
        raise BadInput(f"{error}. By LoRA, it fits here: {how_to_use_lora(stage, other)}") from None


def _can_be_chosen(choose: Callable[[Workload], object], work: Workload) -> bool:
    """Return whether the work fits; False also if LoRA can't adapt the model."""
    try:
        choose(work)
    except BadInput:
        return False
    return True


# ---------------------------------------------------------------- does the compiler work


def check_compiler(context: TrainingContext) -> None:
    """Compile a block of the model of the first stage, if this machine compiles; let `context`
    train without what fails, and report it. Every rank calls this. Nothing is read from the store,
    and a second call does nothing.

    Raises what compiling raises if no smaller plan helps.
    """
    job, stages = context.job, context.request.stages
    if context.compiler_checked or not stages or job.hardware.compile is False:
        return
    context.compiler_checked = True
    if job.hardware.compile == "auto" and gpu_count() == 0:  # known without torch
        return
    from pion.train.compile_trial import Trial, try_compiler

    started = time.monotonic()
    # A rank that has nothing to compile must not keep the others waiting.
    alone = dataclasses.replace(context.group, distributed=False)
    try:
        plan = choose_plan(job, stages[0], alone, None, context.at_most)
    except BadInput:
        return  # the stage itself reports what does not fit
    if not plan.compile:
        return
    use_private_compile_cache()
    with context.watchdog.paused():
        changes = try_compiler(
            Trial(
                job.model_config_resolved(),
                job.seq_len(stages[0]),
                documents=job.has_documents(stages[0]),
            ),
            plan,
        )
    context.report(phase("compiler checked", started))
    for change in changes:
        context.report(Note(f"{change.why}. Training uses {change.changes}"))
    if changes:
        context.compiler_changes = changes
        left = {name: getattr(changes[-1].plan, name) for name in COMPILED}
        # As in the record of a plan: these leave the plan as large as it is.
        unlimited = {"micro_batch": AS_MANY_AS_FIT, "recompute": False, "compile": True}
        context.at_most = (context.at_most or unlimited) | left
