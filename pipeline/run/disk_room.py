"""Refuse to train on a disk that has no room for one checkpoint, before anything is started."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pion.errors import BadInput
from pipeline.console.formats import size
from pipeline.job import Job
from pipeline.machine.folders import cache_folder, free_bytes
from pipeline.run.stage_plan import StagePlan, WorkLeft, stages_until
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from pipeline.state.workspace import Workspace
from pipeline.workers.ray_workers import RAY_ADDRESS

FLOAT32 = 4


def require_room(job: Job, run: RunState, left: WorkLeft, until: str | None = None) -> None:
    """Raise BadInput if this machine's disk can't hold one checkpoint of what is left to train.

    A store on this disk has the checkpoints. Of any other store, the newest ones are copied here.
    """
    local = isinstance(run.store, FileStore)
    stages = _to_save(job, left, until)
    if not stages or (not local and RAY_ADDRESS in os.environ):  # saved on another machine
        return
    stage = max(stages, key=lambda stage: sum(checkpoint_bytes(job, stage)))
    weights, moments = checkpoint_bytes(job, stage)
    folder = Workspace(run.store, run.name).folder("checkpoints")
    free = free_bytes(folder)
    if free is None or free + _deletable(folder, left, local=local) >= weights + moments:
        return
    place = (
        "set store to a place with room"
        if local
        else f"set XDG_CACHE_HOME to a folder with room (now {cache_folder().parent})"
    )
    raise BadInput(
        f"The disk of {folder} has {size(free)} free, and one checkpoint of {stage} takes "
        f"{size(weights + moments)}: {size(weights)} of weights and {size(moments)} of the "
        f"optimizer's state. Nothing was started. Free some space there, or {place}."
    )


def checkpoint_bytes(job: Job, stage: str) -> tuple[int, int]:
    """Return the bytes of the weights and of the optimizer's state in a checkpoint of `stage`."""
    from pion.config.lora import lora_cost
    from pion.model.params_and_flops import cost_of  # imports torch

    config, lora = job.model_config_resolved(), job.lora(stage)
    if lora is not None:
        learned = FLOAT32 * lora_cost(config, lora).params
        return learned, 2 * learned
    cost = cost_of(config)
    moments = 2 * cost.all_params
    if job.section(stage).optimizer == "muon":  # it has one moment, AdamW two
        moments -= cost.params["matrix"]
    return FLOAT32 * cost.all_params, FLOAT32 * moments


def _to_save(job: Job, left: WorkLeft, until: str | None) -> list[str]:
    """Return the training stages that will still write a checkpoint."""
    wanted = stages_until([plan.stage for plan in left.plans], until)
    return [
        plan.stage
        for plan in left.plans
        if plan.stage in wanted
        and plan.stage in job.train_stages
        and plan.state != "done"
        and not _is_saved(job, left, plan)
    ]


def _is_saved(job: Job, left: WorkLeft, plan: StagePlan) -> bool:
    """Return whether a stage that is not done was interrupted after its last save."""
    section = job.section(plan.stage)
    resumes = plan.state == "resume" and left.redo is None
    if left.head is None or not resumes or not section.steps_are_known:
        return False
    entries = left.head.checkpoints
    return any((e.stage, e.step) == (plan.stage, section.total_steps) for e in entries)


def _deletable(folder: Path, left: WorkLeft, *, local: bool) -> int:
    """Return the bytes in `folder` that the run may delete before it saves: of checkpoints that
    HEAD does not list, and of copies of older ones."""
    entries = left.head.checkpoints if left.head else ()
    kept = {folder.parent / entry.key for entry in (entries if local else entries[:2])}
    deletable = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # its owner deletes it now
            if path.parent not in kept and path.is_file():
                deletable += path.stat().st_size
    return deletable
