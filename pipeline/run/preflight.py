"""Checks before anything is started, for what would fail later."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pion.errors import BadInput
from pion.files import cache_folder
from pion.garbage_collection import importing
from pipeline.console.formats import size
from pipeline.data.compared_text import check_text
from pipeline.job import Job
from pipeline.job.stages import stages_until
from pipeline.machine.folders import COMPILE_CACHE, compile_cache_folder, free_bytes
from pipeline.machine.gpus import VISIBLE, listed_gpus, named_gpus, names_no_gpu
from pipeline.machine.rented import is_rented
from pipeline.run.done_and_changed_stages import StagePlan, WorkLeft
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, open_store
from pipeline.state.workspace import Workspace
from pipeline.workers.cluster_size import Cluster, cluster_of, gpus_of_workers
from pipeline.workers.ray_workers import RAY_ADDRESS

# SkyPilot sets this on a machine that it terminates itself when the job ends or is moved.
MANAGED = "SKYPILOT_MANAGED_JOB_ID"


def refuse_one_choice(job: Job) -> None:
    """Raise BadInput for a new run whose routers or recipes would learn nothing from the loss."""
    if job.base is not None:
        return
    stage = job.train_stages[0]
    top_ks = [phase.top_k for phase in job.section(stage).phases] or [None]
    for _, part in job.model_config_resolved().parts():
        if (why := part.one_choice(stage, top_ks)) is not None:
            raise BadInput(why)


def preflight(job: Job) -> list[str]:
    """Raise BadInput for what would fail later; return warnings and what could not be checked."""
    from pipeline.training.stage_metrics import check_trackers

    check_trackers(job)
    notes = what_gpus_are_used(job)
    if job.hardware.elastic:
        notes += what_workers_take(job, cluster_of(job))
    workers = worker_count(job)
    gpus = gpus_of_workers(job)
    if 0 < gpus < workers and RAY_ADDRESS not in os.environ:  # its nodes have GPUs
        raise BadInput(
            f"hardware.workers {workers}: this machine has {gpus} GPUs, and each worker needs one. "
            f"Nothing was started. Set hardware.workers={gpus}, or remove the setting."
        )
    if job.hardware.compile is True and gpus == 0:
        _check_compiler_folders()
    require_a_row_each(job, workers)
    file = None if job.tokenizer is None else job.tokenizer.file
    if file is not None and not (path := job.kept_path(file)).is_file():
        raise BadInput(f"tokenizer.file: {path} does not exist. Nothing was started.")
    if job.reinforce is not None:
        from pipeline.data.judge import judge_of

        judge_of(job).close()
    if job.evaluate.sets:
        from pipeline.stages.evaluate_core import read_questions_of

        read_questions_of(job)
    if job.evaluate.text is not None:
        check_text(job)
    notes += store_that_goes_with_the_machine(job.store)
    if job.publish is not None:
        from pipeline.run.preflight_publish import check_target

        notes += check_target(job)
    return notes


def what_gpus_are_used(job: Job) -> list[str]:
    """Return what is surprising about the GPUs that this run will use.

    Raises BadInput if CUDA_VISIBLE_DEVICES names a GPU that this machine does not have.
    """
    visible, listed = os.environ.get(VISIBLE), listed_gpus()
    if not listed or RAY_ADDRESS in os.environ:  # its nodes have GPUs of their own
        return []
    if visible is not None:
        wrong = names_no_gpu(visible, listed)
        if wrong is not None:
            raise BadInput(
                f"{VISIBLE} is {visible!r}, and {wrong!r} names no GPU of this machine, or names "
                f"it twice: `nvidia-smi -L` lists {len(listed)}, from 0. Nothing was started. "
                f"Correct {VISIBLE}, or unset it to use all GPUs."
            )
        if not named_gpus(visible):
            return [
                f"{VISIBLE} is {visible!r}, so this run uses the CPU, although this machine has "
                f"{len(listed)} × {listed[0].name}. To use them, unset {VISIBLE}"
            ]
    named = named_gpus(visible or "")
    if any(n.startswith("MIG-") for n in named) or (not named and any(g.slices for g in listed)):
        return [
            f"the {listed[0].name} is split into MIG slices. CUDA gives a process one slice, and "
            "slices can't train together: this run uses one"
        ]
    names = list(dict.fromkeys(gpu.name for gpu in listed))
    if visible is None and len(names) > 1 and worker_count(job) > 1:
        return [
            f"this machine has different GPUs ({', '.join(names)}). All of them train with the "
            "rows and the precision of the weakest, and the others wait for it. To use GPUs of one "
            f"kind, set {VISIBLE} to their ids (`nvidia-smi -L`)"
        ]
    return []


def what_workers_take(job: Job, cluster: Cluster) -> list[str]:
    """Return what is surprising about the workers of an elastic job in a Ray with this much."""
    if cluster.gpus:
        return []
    return [
        f"hardware.workers {job.hardware.workers_in_words}: the Ray at "
        f"{os.environ.get(RAY_ADDRESS)} has no GPU, so each worker takes a CPU. This run will not "
        "use GPUs that come later: add a node that has one first, then start again"
    ]


def require_a_row_each(job: Job, workers: int) -> None:
    """Raise BadInput if a stage's batch has fewer rows than there are workers."""
    stage = stage_with_few_rows(job, workers)
    if stage is not None:
        whole, joined = job.section(stage).global_batch, job.joined(stage)
        batch = whole // joined
        long = f" ({batch} of the longest rows)" if joined > 1 else ""
        fewest = min(job.hardware.min_workers or 0, batch)
        fitting = f"[{fewest},{batch}]" if job.hardware.elastic else batch
        raise BadInput(
            f"{stage}.global_batch {whole}{long} is less than one row for each of the {workers} "
            f"workers. Nothing was started. Set hardware.workers={fitting}."
        )


def stage_with_few_rows(job: Job, workers: int) -> str | None:
    """Return the first stage whose batch has fewer rows than there are workers, if there is one."""
    batches = {s: job.section(s).global_batch // job.joined(s) for s in job.train_stages}
    return next((stage for stage, batch in batches.items() if batch < workers), None)


def _check_compiler_folders() -> None:
    """Raise BadInput where the C++ compiler would fail: torch does not quote the paths."""
    for variable, folder in (
        ("TMPDIR", tempfile.gettempdir()),
        (COMPILE_CACHE, str(compile_cache_folder())),
    ):
        if any(character.isspace() for character in folder):
            raise BadInput(
                f"hardware.compile: torch.compile cannot use the folder {folder!r}, because its "
                f"path has a space. Nothing was started. Set {variable} to a path without spaces, "
                "or set hardware.compile=false."
            )


def store_that_goes_with_the_machine(
    url: str, environment: Mapping[str, str] = os.environ
) -> list[str]:
    """Return a warning if the store is a folder on a rented machine's own disk.

    Raises BadInput if SkyPilot will terminate the machine without asking.
    """
    remote = "://" in url and not url.startswith("file://")
    if remote or not is_rented(environment):
        return []
    store = open_store(url)
    assert isinstance(store, FileStore)
    folder = next(path for path in (store.folder, *store.folder.parents) if path.exists())
    if folder.stat().st_dev != Path("/").stat().st_dev:  # a volume may outlive the machine
        return []
    if environment.get(MANAGED):
        raise BadInput(
            f"store {url} is on this rented machine, and will be lost with the machine. Nothing "
            "was started. Launch with a store that outlives machines: store=s3://bucket/prefix or "
            'store=hf://user/repo (bare: --env OVERRIDES="store=…").'
        )
    return [
        f"store {url} is a folder on this rented machine: copy what you want to keep before the "
        "machine is terminated, or use store=s3://bucket/prefix or store=hf://user/repo"
    ]


def worker_count(job: Job) -> int:
    """Return the number of Ray workers: the job's, else one per GPU, else one. 0 = no Ray. If the
    number may change, return the most.

    Raises BadInput if the GPUs are those of a Ray that can't be reached.
    """
    if job.hardware.max_workers is not None:
        return job.hardware.max_workers
    return max(1, gpus_of_workers(job))


# ---------------------------------------------------------------- room for a checkpoint

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
    with importing():
        from pion.config.lora import lora_cost
        from pion.model.params_and_flops import cost_of, shapes_and_roles  # imports torch
        from pion.train.optimizer.rule import state_bytes

    config, lora = job.model_config_resolved(), job.lora(stage)
    if lora is not None:
        learned = FLOAT32 * lora_cost(config, lora).params
        return learned, 2 * learned
    name = job.section(stage).optimizer
    moments = sum(state_bytes(name, role, shape) for shape, role in shapes_and_roles(config))
    return FLOAT32 * cost_of(config).all_params, moments


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
    if left.head is None or plan.state != "resume" or left.redo or not section.steps_are_known:
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
