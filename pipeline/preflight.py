"""What would fail later, found before anything is started."""

from __future__ import annotations

from pion.errors import BadInput
from pipeline.hardware_count import gpu_count
from pipeline.job import Job


def preflight(job: Job) -> list[str]:
    """Find now what would fail later; returns what could not be found out. Raises BadInput."""
    from pipeline.training.trackers import check_trackers

    check_trackers(job)
    workers = worker_count(job)
    gpus = gpu_count()
    if 0 < gpus < workers:
        raise BadInput(
            f"hardware.workers {workers}: this machine has {gpus} GPUs, and each worker needs one. "
            f"Nothing was started. Set hardware.workers={gpus}, or leave it out."
        )
    for stage in job.train_stages:
        batch = job.section(stage).global_batch
        if batch < workers:
            raise BadInput(
                f"{stage}.global_batch {batch} is smaller than the {workers} workers, which would "
                f"leave some without a row. Nothing was started. Set hardware.workers={batch}."
            )
    if job.tokenizer.file is not None and not job.input_path(job.tokenizer.file).is_file():
        path = job.input_path(job.tokenizer.file)
        raise BadInput(f"tokenizer.file: {path} does not exist. Nothing was started.")
    for name in ("pretrain", "sft"):
        section = getattr(job, name)
        if section is not None and section.init_from is not None:
            from pipeline.find_model import find_model

            path = job.input_path(section.init_from)
            find_model(str(path) if path.exists() else section.init_from)
    if job.evaluate.packs:
        from pipeline.stages.evaluate import read_packs

        read_packs(job)
    if job.publish is not None:
        from pipeline.stages.publish import check_target

        return check_target(job)
    return []


def worker_count(job: Job) -> int:
    """Ray workers of this machine: the job's, else one per GPU, else one. 0 = no Ray."""
    if job.hardware.workers is not None:
        return job.hardware.workers
    return max(1, gpu_count())
