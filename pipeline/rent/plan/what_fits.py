"""What fits on which GPU: the ways to fine-tune on it, the GPUs with the memory that a job needs,
and what to change where they have too little. All of these are estimates of a changed job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pion.errors import BadInput
from pion.train.micro_batch import HEADROOM
from pipeline.console.formats import counted
from pipeline.job import Job
from pipeline.job.sft_and_lora_sections import Lora, how_to_use_lora
from pipeline.job.stages import CONVERSING
from pipeline.rent.plan.estimate import Estimate, StageEstimate, estimate, estimate_stage
from pipeline.rent.plan.gpus import GPU_TYPES
from pipeline.rent.plan.prices import Offer

GIB = 2**30
# How many GPUs are named, the smallest first.
LISTED = 6
# How sentences about LoRA begin.
BY_LORA, IN_BOTH = "By LoRA", "By LoRA in both stages"


# ---------------------------------------------------------------- ways to fine-tune


@dataclass(frozen=True)
class Ways:
    """What a stage of fine-tuning takes on a GPU, for each way to train it.

    Attributes:
        stage: `sft`, `prefer` or `reinforce`.
        usable: the bytes of a GPU that training may use.
        rank: LoRA's rank, the job's or the default.
        ways: `full` (all weights are trained, and all activations are kept), `recomputed` (all
            weights, and activations are recomputed) and `lora` (LoRA's additions are trained; None
            if LoRA can't adapt this model).
    """

    stage: str
    usable: int
    rank: int
    ways: Mapping[str, StageEstimate | None]

    def __str__(self) -> str:
        names = (f"{self.stage} in full", "recomputed", f"by LoRA of rank {self.rank}")
        cells = [
            f"{name}: {'✓' if way.fits else '✗'} {way.peak_bytes / GIB:.1f} GiB "
            f"({counted(way.micro_batch, 'row')})"
            for name, way in zip(names, self.ways.values(), strict=True)
            if way is not None
        ]
        return "; ".join(cells)

    def as_json(self) -> dict[str, Any]:
        """Return the values of `--json`, whose keys are pinned."""
        names = ("micro_batch", "recompute", "peak_bytes", "fits")
        shown = {
            key: None if way is None else {name: getattr(way, name) for name in names}
            for key, way in self.ways.items()
        }
        return {"stage": self.stage, "usable": self.usable, "rank": self.rank, **shown}


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
    """Return what a stage of fine-tuning takes on one GPU of the offer, for each way to train it.

    None without a GPU, and for a GPU whose memory is not known.
    """
    if offer.gpu is None or offer.gpu_memory is None:
        return None
    lora = job.conversations(stage).lora or Lora()
    changed = {
        "full": _changed(job, {stage: None}, recompute=False),
        "recomputed": _changed(job, {stage: None}, recompute=True),
        "lora": _changed(job, {stage: lora}, recompute=job.hardware.recompute),
    }
    ways: dict[str, StageEstimate | None] = {}
    for name, other in changed.items():
        try:
            ways[name] = estimate_stage(other, stage, offer, num_nodes=num_nodes)
        except BadInput:  # it has no projections that LoRA can adapt
            ways[name] = None
    return Ways(stage, int(offer.gpu_memory * (1 - HEADROOM)), lora.rank, ways)


def _changed(job: Job, loras: Mapping[str, Lora | None], *, recompute: bool | None) -> Job:
    """Return the job with this LoRA in these stages, where None trains all weights."""
    sections = {}
    for stage, lora in loras.items():
        changes: dict[str, Any] = {"lora": lora}
        if lora is not None:
            changes["optimizer"] = "adamw"
        sections[stage] = job.section(stage).model_copy(update=changes)
    hardware = job.hardware.model_copy(update={"recompute": recompute})
    return job.model_copy(update={**sections, "hardware": hardware})


# ---------------------------------------------------------------- GPUs that fit


def on_gpus(job: Job, gpu: str, count: int = 1) -> Estimate:
    """Return what the job takes on a machine with so many GPUs of a known type, without a price."""
    memory = GPU_TYPES[gpu].memory
    return estimate(job, Offer(gpu, count, None, None, False, None, None, memory, 0))


def on_each_gpu(job: Job) -> list[Estimate]:
    """Return what the job takes on one GPU of each type, the smallest memory first."""
    return [on_gpus(job, gpu) for gpu in sorted(GPU_TYPES, key=lambda gpu: GPU_TYPES[gpu].memory)]


def what_would_fit(job: Job) -> str:
    """Return a sentence that names the GPU types on which a single GPU can train the job, the
    smallest memory first."""
    names = [str(guess.offer.gpu) for guess in on_each_gpu(job) if guess.fits]
    return f"It fits on {_listed(names)}." if names else "It fits on no GPU known here."


# ---------------------------------------------------------------- several GPUs

# How many GPUs a machine has.
COUNTS = (2, 4, 8)
# A job that fits on a single GPU with this much memory is told about such GPUs. Larger ones are
# rare and dear, so machines with several GPUs are named, too.
COMMON = 80 * GIB


def on_several(job: Job, lacking: Sequence[Estimate]) -> list[Estimate]:
    """Return what the job takes on the fewest GPUs of one machine that it fits on, of the types
    that lack memory alone. Each GPU needs a row of a step.

    Return nothing for a job that fits on a common GPU alone, and for one that says how many workers
    there are.
    """
    alone = (guess.offer.gpu_memory or 0 for guess in on_each_gpu(job) if guess.fits)
    if job.hardware.workers is not None or any(memory <= COMMON for memory in alone):
        return []
    rows = min(job.section(stage).global_batch for stage in job.train_stages)
    types = dict.fromkeys(e.offer.gpu for e in lacking if e.lacks and e.offer.gpu in GPU_TYPES)
    counts = [count for count in COUNTS if count <= rows]
    guesses = ((on_gpus(job, str(gpu), count) for count in counts) for gpu in types)
    fewest = (next((guess for guess in of_type if guess.fits), None) for of_type in guesses)
    return [guess for guess in fewest if guess is not None]


def what_several_would_fit(job: Job, lacking: Sequence[Estimate]) -> list[str]:
    """Return a sentence that names machines with several of these GPUs on which the job fits, and
    what to write; nothing if there are none."""
    guesses = on_several(job, lacking)
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


# ---------------------------------------------------------------- what to change


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
    recompute = job.hardware.recompute
    if recompute is False:
        changed = _changed(job, {}, recompute=None)
        yield "With recomputed activations", changed, "remove hardware.recompute: false"
    loras: dict[str, Lora | None] = {}
    for stage in fine_tuning_stages(job):
        if job.lora(stage) is None:
            other = job.same_lora_as(stage)
            loras[stage] = Lora() if other is None else job.conversations(other).lora
            changed = _changed(job, {stage: loras[stage]}, recompute=recompute)
            yield BY_LORA, changed, how_to_use_lora(stage, other)
    if len(loras) > 1:
        below = " and ".join(f"below {stage}" for stage in loras)
        added = " ".join(f"{stage}.lora.rank=16" for stage in loras)
        how = f"write `lora: {{rank: 16}}` {below}, or add {added} to the command"
        yield IN_BOTH, _changed(job, loras, recompute=recompute), how


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:LISTED])}{' …' if len(names) > LISTED else ''}"
