"""What fits on which GPU: the ways to fine-tune on it, the GPUs with the memory that a job needs,
and what to change where they have too little."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pion.config.lora import Lora
from pion.data.order import rows_per_rank
from pion.errors import BadInput
from pion.train.memory import Workload, predict_memory
from pion.train.micro_batch import HEADROOM, DoesNotFit, choose_sharing
from pipeline.console.formats import counted
from pipeline.job import Job
from pipeline.job.sft_and_lora_sections import Lora as LoraSection
from pipeline.job.sft_and_lora_sections import how_to_use_lora
from pipeline.job.stages import CONVERSING
from pipeline.rent.plan.estimate import Estimate, estimate, largest_phase, workers_on, workload_on
from pipeline.rent.plan.gpus import GPU_TYPES
from pipeline.rent.plan.prices import Offer

GIB = 2**30
# How many GPUs are named, the smallest first.
LISTED = 6
# How sentences about LoRA begin.
BY_LORA, IN_BOTH = "By LoRA", "By LoRA in both stages"


# ---------------------------------------------------------------- ways to fine-tune


@dataclass(frozen=True)
class Way:
    """One way to fine-tune on a GPU, with the micro-batch that a run would use.

    If it does not fit, `peak_bytes` is what the smallest micro-batch needs.
    """

    micro_batch: int
    recompute: bool
    peak_bytes: int
    fits: bool

    def __str__(self) -> str:
        rows = counted(self.micro_batch, "row")
        return f"{'✓' if self.fits else '✗'} {self.peak_bytes / GIB:.1f} GiB ({rows})"


@dataclass(frozen=True)
class Ways:
    """What a stage of fine-tuning needs on one GPU.

    Attributes:
        stage: `sft` or `prefer`.
        usable: the bytes of a GPU that training may use.
        full: all weights are trained, and all activations are kept.
        recomputed: all weights are trained, and activations are recomputed.
        lora: LoRA's additions are trained; None if LoRA can't adapt this model.
        rank: LoRA's rank, the job's or the default.
    """

    stage: str
    usable: int
    full: Way
    recomputed: Way
    lora: Way | None
    rank: int

    def __str__(self) -> str:
        cells = {f"{self.stage} in full": self.full, "recomputed": self.recomputed}
        if self.lora is not None:
            cells[f"by LoRA of rank {self.rank}"] = self.lora
        return "; ".join(f"{name}: {way}" for name, way in cells.items())


def fine_tuning_stages(job: Job) -> list[str]:
    """Return the stages of a job that have more than one way to train: on conversations or
    preferences, from a model of others.

    A job that pretrains has no choice to make: a GPU that pretrains a model also trains all its
    weights afterwards.
    """
    if job.pretrain is not None:
        return []
    return [stage for stage in job.train_stages if stage in CONVERSING]


def ways_on(job: Job, stage: str, offer: Offer, num_nodes: int = 1) -> Ways | None:
    """Return what a stage of fine-tuning needs on one GPU of the offer, for each way to train it.

    None without a GPU, and for a GPU whose memory is not known.
    """
    memory = offer.gpu_memory
    if offer.gpu is None or memory is None:
        return None
    usable = int(memory * (1 - HEADROOM))
    workers = workers_on(job, offer, num_nodes)
    work = largest_phase(workload_on(offer.gpu, job, stage, workers), job, stage)
    rows = rows_per_rank(job.section(stage).rows_of_step(job.seq_len(stage)), workers)
    asked, lora = job.hardware, work.lora or Lora()

    def way(changed: Workload, recompute: bool | None) -> Way:
        try:
            changed, derived, recompute = choose_sharing(
                changed,
                sharded=asked.sharded,
                rows_per_rank=rows,
                memory_bytes=memory,
                recompute=recompute,
            )
        except DoesNotFit:
            derived, recompute = 1, recompute is not False
        micro_batch = min(asked.micro_batch or derived, rows)
        peak = predict_memory(changed, micro_batch=micro_batch, recompute=recompute).total
        return Way(micro_batch, recompute, peak, peak <= usable)

    full = replace(work, lora=None)
    try:
        by_lora = way(replace(work, lora=lora, optimizer="adamw"), asked.recompute)
    except BadInput:  # it has no projections that LoRA can adapt
        by_lora = None
    return Ways(stage, usable, way(full, False), way(full, True), by_lora, lora.rank)


# ---------------------------------------------------------------- GPUs that fit


def on_each_gpu(job: Job) -> dict[str, Estimate]:
    """Return what the job takes on one GPU of each type, the smallest memory first."""
    return {
        name: estimate(job, Offer(name, 1, None, None, False, None, None, kind.memory, 0))
        for name, kind in sorted(GPU_TYPES.items(), key=lambda item: item[1].memory)
    }


def gpus_that_fit(job: Job) -> list[str]:
    """Return the GPU types of which a single GPU can train the job, the smallest memory first."""
    return [name for name, guess in on_each_gpu(job).items() if guess.fits]


def what_would_fit(job: Job) -> str:
    """Return a sentence that names the GPU types on which a single GPU can train the job."""
    found = gpus_that_fit(job)
    return f"It fits on {_listed(found)}." if found else "It fits on no GPU known here."


# ---------------------------------------------------------------- several GPUs

# How many GPUs a machine has.
COUNTS = (2, 4, 8)
# A job that fits on a single GPU with this much memory is told about such GPUs. Larger ones are
# rare and dear, so machines with several GPUs are named, too.
COMMON = 80 * GIB


def fewest_that_fit(job: Job, gpu: str) -> Estimate | None:
    """Return what the job takes on the fewest GPUs of one machine that it fits on; None if it does
    not fit on the most of COUNTS, or if the job says how many workers there are. Each GPU needs a
    row of a step."""
    memory = GPU_TYPES[gpu].memory if gpu in GPU_TYPES else None
    if job.hardware.workers is not None or memory is None:
        return None
    rows = min(job.section(stage).global_batch for stage in job.train_stages)
    for count in (count for count in COUNTS if count <= rows):
        guess = estimate(job, Offer(gpu, count, None, None, False, None, None, memory, 0))
        if guess.fits:
            return guess
    return None


def on_several(job: Job, gpus: Sequence[str]) -> list[Estimate]:
    """Return what the job takes on the fewest GPUs of each type that it fits on, of these types.

    Return nothing for a job that fits on a common GPU alone.
    """
    if any(GPU_TYPES[gpu].memory <= COMMON for gpu in gpus_that_fit(job)):
        return []
    found = (fewest_that_fit(job, gpu) for gpu in dict.fromkeys(gpus))
    return [guess for guess in found if guess is not None]


def what_several_would_fit(job: Job, gpus: Sequence[str]) -> list[str]:
    """Return a sentence that names machines with several of these GPUs on which the job fits, and
    what to write; nothing if there are none."""
    guesses = on_several(job, gpus)
    if not guesses:
        return []
    names = [
        f"{e.offer.count} × {e.offer.gpu} ({e.peak_bytes / GIB:.1f} GiB each"
        f"{', sharded' if e.sharded else ''})"
        for e in guesses
    ]
    first = guesses[0].offer
    return [
        f"On several GPUs of one machine, it fits on {_listed(names)}: write accelerators: "
        f"{first.gpu}:{first.count} in the rental, or hardware.workers={first.count} for "
        "`pion plan`."
    ]


def what_to_change(job: Job, guesses: Sequence[Estimate], num_nodes: int = 1) -> list[str]:
    """Return a sentence for each change to the job with which it fits on more of these machines.

    Of the estimates, only those that lack memory count. A sentence says what to write, and what the
    job then needs.
    """
    lacking = [guess.offer for guess in guesses if guess.lacks is not None]
    offers = sorted(lacking, key=lambda offer: offer.gpu_memory or 0)
    sentences: list[str] = []
    for how, changed, lines in _changes(job):
        if how == IN_BOTH and any(one.startswith(BY_LORA) for one in sentences):
            continue
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
    full = [stage for stage in fine_tuning_stages(job) if job.lora(stage) is None]
    for stage in full:
        yield BY_LORA, _by_lora(job, [stage]), how_to_use_lora(stage, job.same_lora_as(stage))
    if len(full) > 1:
        below = " and ".join(f"below {stage}" for stage in full)
        added = " ".join(f"{stage}.lora.rank=16" for stage in full)
        how = f"write `lora: {{rank: 16}}` {below}, or add {added} to the command"
        yield IN_BOTH, _by_lora(job, full), how


def _by_lora(job: Job, stages: Sequence[str]) -> Job:
    """Return the job with LoRA in these stages, too."""
    sections = {}
    for stage in stages:
        other = {"sft": job.sft, "prefer": job.prefer}.get(job.same_lora_as(stage) or "")
        lora = LoraSection() if other is None else other.lora
        changes = {"lora": lora, "optimizer": "adamw"}
        sections[stage] = job.section(stage).model_copy(update=changes)
    return job.model_copy(update=sections)


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:LISTED])}{' …' if len(names) > LISTED else ''}"
