"""Which GPUs have the memory that a job needs, and what to change where they have too little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.job import Job
from pipeline.job.train_sections import HOW_TO_USE, Lora
from pipeline.rent.plan.estimate import Estimate, estimate
from pipeline.rent.plan.gpus import GPU_TYPES
from pipeline.rent.plan.prices import Offer
from pipeline.rent.plan.ways import GIB

# How many GPUs are named, the smallest first.
LISTED = 6


def on_each_gpu(job: Job) -> dict[str, Estimate]:
    """Return what the job takes on one GPU of each type, the smallest memory first."""
    by_memory = sorted(GPU_TYPES.items(), key=lambda item: item[1].memory)
    return {
        name: estimate(job, Offer(name, 1, None, None, False, None, None, kind.memory, 0))
        for name, kind in by_memory
    }


def gpus_that_fit(job: Job) -> list[str]:
    """Return the GPU types of which a single GPU can train the job, the smallest memory first."""
    return [name for name, guess in on_each_gpu(job).items() if guess.fits]


def what_would_fit(job: Job) -> str:
    """Return a sentence that names the GPU types on which a single GPU can train the job."""
    found = gpus_that_fit(job)
    return f"It fits on {_listed(found)}." if found else "It fits on no GPU known here."


def what_to_change(job: Job, guesses: Sequence[Estimate], num_nodes: int = 1) -> list[str]:
    """Return a sentence for each change to the job with which it fits on more of these machines.

    Of the estimates, only those that lack memory count. A sentence says what to write, and what the
    job then needs.
    """
    lacking = [guess.offer for guess in guesses if guess.lacks is not None]
    offers = sorted(lacking, key=lambda offer: offer.gpu_memory or 0)
    sentences = []
    for how, changed, lines in _changes(job):
        tried = [estimate(changed, offer, num_nodes=num_nodes) for offer in offers]
        names = [f"{e.offer.gpu} ({e.peak_bytes / GIB:.1f} GiB)" for e in tried if e.fits]
        if names:
            sentences.append(f"{how}, it fits on {_listed(list(dict.fromkeys(names)))}: {lines}.")
    return sentences


def _changes(job: Job) -> Iterator[tuple[str, Job, str]]:
    """Yield the changes that lower the memory of a job: in words, the job, and what to write."""
    if job.hardware.recompute is False:
        hardware = job.hardware.model_copy(update={"recompute": None})
        changed = job.model_copy(update={"hardware": hardware})
        yield "With recomputed activations", changed, "remove hardware.recompute: false"
    if job.sft is not None and job.sft.lora is None:
        sft = job.sft.model_copy(update={"lora": Lora(), "optimizer": "adamw"})
        yield "By LoRA", job.model_copy(update={"sft": sft}), HOW_TO_USE


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:LISTED])}{' …' if len(names) > LISTED else ''}"
