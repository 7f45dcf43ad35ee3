"""What a stage of a job computes on one GPU, by the GPU's type."""

from __future__ import annotations

from dataclasses import replace

from pion.train.memory import Workload
from pion.train.phases import config_of_largest_phase
from pipeline.job import Job
from pipeline.job.train_sections import phases_of
from pipeline.rent.plan.gpus import GPU_TYPES
from pipeline.rent.plan.prices import Offer


def workload_on(gpu: str, job: Job, stage: str) -> Workload:
    """Return what one GPU of this type computes in a stage."""
    kind, hardware = GPU_TYPES.get(gpu), job.hardware
    return Workload(
        job.model_config_resolved(),
        job.seq_len(stage),
        kind.dtype(hardware.dtype) if kind else "bfloat16",
        job.section(stage).optimizer,
        "cuda",
        documents=stage == "sft" or job.within_documents,
        compile=hardware.compile is not False,
        lora=job.lora(stage),
        capability=kind.capability if kind else None,
    )


def largest_phase(work: Workload, job: Job, stage: str) -> Workload:
    """Return the work of the stage's phase that needs the most memory."""
    phases = phases_of(job.section(stage).phases)
    return replace(work, config=config_of_largest_phase(phases, work.config))


def workers_on(job: Job, offer: Offer, num_nodes: int = 1) -> int:
    """Return how many workers train on `num_nodes` machines of an offer."""
    asked = job.hardware.workers
    return offer.count * num_nodes if asked is None else max(1, asked)
