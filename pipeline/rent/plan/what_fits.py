"""What fits on which GPU: the ways to fine-tune on it, the GPUs with the memory that a job needs,
and what to change where they have too little, or where a run would wait for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from pion.errors import BadInput
from pipeline.console.formats import counted, some
from pipeline.job import Job
from pipeline.job.sft_and_lora_sections import Lora, how_to_use_lora
from pipeline.job.stages import CONVERSING
from pipeline.machine.gpus import GPU_TYPES
from pipeline.rent.plan.estimate import Estimate, StageEstimate, estimate, estimate_stage
from pipeline.rent.plan.prices import NO_CATALOG, Offer, cheapest_first, look_up, market
from pipeline.rent.sky_yaml import Candidate, SkyYaml

GIB = 2**30
# How many GPUs are named, the smallest first.
LISTED = 6
# The most entries of a rental that a warning suggests.
SUGGESTIONS = 3


# ---------------------------------------------------------------- ways to fine-tune


@dataclass(frozen=True)
class Ways:
    """What a stage of fine-tuning takes on a GPU, for each way to train it.

    Attributes:
        stage: `sft`, `prefer` or `reinforce`.
        usable: the bytes of a GPU that training may use.
        rank: LoRA's rank, the job's or the default.
        ways: `full` (all weights are trained, and all activations are kept), `recomputed` (all
            weights, and activations are recomputed) and `lora` (LoRA's additions are trained; not
            there if LoRA can't adapt this model).
    """

    stage: str
    usable: int
    rank: int
    ways: Mapping[str, StageEstimate]

    def __str__(self) -> str:
        names = (f"{self.stage} in full", "recomputed", f"by LoRA of rank {self.rank}")
        return "; ".join(
            f"{name}: {'✓' if way.fits else '✗'} {way.peak_bytes / GIB:.1f} GiB "
            f"({counted(way.micro_batch, 'row')})"
            for name, way in zip(names, self.ways.values())
        )

    def as_json(self) -> dict[str, Any]:
        """Return the values of `--json`, whose keys are pinned."""
        keys = ("micro_batch", "recompute", "peak_bytes", "fits")
        ways = dict.fromkeys(("full", "recomputed", "lora")) | {
            name: {key: getattr(way, key) for key in keys} for name, way in self.ways.items()
        }
        return {"stage": self.stage, "usable": self.usable, "rank": self.rank, **ways}


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
    jobs = {
        "full": _changed(job, {stage: None}, recompute=False),
        "recomputed": _changed(job, {stage: None}, recompute=True),
        "lora": _changed(job, {stage: lora}, recompute=job.hardware.recompute),
    }
    ways = {}
    for name, changed in jobs.items():
        with suppress(BadInput):  # it has no projections that LoRA can adapt
            ways[name] = estimate_stage(changed, stage, offer, num_nodes=num_nodes)
    return Ways(stage, offer.usable_bytes, lora.rank, ways)


def _changed(job: Job, loras: Mapping[str, Lora | None], *, recompute: bool | None) -> Job:
    """Return the job with this LoRA in these stages, where None trains all weights."""
    sections = {
        stage: job.section(stage).model_copy(
            update={"lora": lora} | ({} if lora is None else {"optimizer": "adamw"})
        )
        for stage, lora in loras.items()
    }
    hardware = job.hardware.model_copy(update={"recompute": recompute})
    return job.model_copy(update={**sections, "hardware": hardware})


# ---------------------------------------------------------------- GPUs that fit


def on_gpus(job: Job, gpu: str, count: int = 1) -> Estimate:
    """Return what the job takes on a machine with so many GPUs of a known type, without a price."""
    return estimate(job, Offer(gpu, count, gpu_memory=GPU_TYPES[gpu].memory))


def on_each_gpu(job: Job) -> list[Estimate]:
    """Return what the job takes on one GPU of each type, the smallest memory first."""
    return [on_gpus(job, gpu) for gpu in sorted(GPU_TYPES, key=lambda gpu: GPU_TYPES[gpu].memory)]


def what_would_fit(job: Job) -> str:
    """Return a sentence that names the GPU types on which a single GPU can train the job, the
    smallest memory first."""
    names = [str(guess.offer.gpu) for guess in on_each_gpu(job) if guess.fits]
    return f"It fits on {some(names, LISTED)}." if names else "It fits on no GPU known here."


# ---------------------------------------------------------------- several GPUs

# How many GPUs a machine has.
COUNTS = (2, 4, 8)
# A job that fits on a single GPU with this much memory is told about such GPUs. Larger ones are
# rare and dear, so machines with several GPUs are named, too.
COMMON = 80 * GIB


def on_several(job: Job, lacking: Sequence[Estimate]) -> list[Estimate]:
    """Return what the job takes on the fewest GPUs of one machine that it fits on, of the types
    that lack memory alone.

    Return nothing for a job that fits on a common GPU alone, and for one that says how many workers
    there are.
    """
    alone = (guess.offer.gpu_memory or 0 for guess in on_each_gpu(job) if guess.fits)
    if job.hardware.workers is not None or any(memory <= COMMON for memory in alone):
        return []
    types = dict.fromkeys(e.offer.gpu for e in lacking if e.lacks and e.offer.gpu in GPU_TYPES)
    guesses = ((on_gpus(job, str(gpu), count) for count in COUNTS) for gpu in types)
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
        f"On several GPUs of one machine, it fits on {some(names, LISTED)}: write accelerators: "
        f"{first.gpu}:{first.count} in the rental, or hardware.workers={first.count} for "
        "`pion plan`."
    ]


# ---------------------------------------------------------------- what to change


def what_to_change(job: Job, guesses: Sequence[Estimate], num_nodes: int = 1) -> list[str]:
    """Return a sentence for each change to the job with which it fits on more of these machines.

    Of the estimates, only those that lack memory count. A sentence says what to write, and what the
    job then needs.
    """
    lacking = sorted((e for e in guesses if e.lacks), key=lambda e: e.offer.gpu_memory or 0)
    short = {stage.stage for guess in lacking for stage in guess.stages if not stage.fits}
    sentences = []
    for title, changed, lines in _changes(job, short):
        guesses = [estimate(changed, e.offer, num_nodes=num_nodes) for e in lacking]
        names = [f"{e.offer.gpu} ({e.peak_bytes / GIB:.1f} GiB)" for e in guesses if e.fits]
        if names:
            fitting = some(list(dict.fromkeys(names)), LISTED)
            sentences.append(f"{title}, it fits on {fitting}: {lines}.")
    return sentences


def _changes(job: Job, short: set[str]) -> Iterator[tuple[str, Job, str]]:
    """Yield the changes that lower the memory of a job whose stages `short` lack some: in words,
    the job, and what to write."""
    recompute = job.hardware.recompute
    if recompute is False:
        changed = _changed(job, {}, recompute=None)
        yield "With recomputed activations", changed, "remove hardware.recompute: false"
    same_as = {
        stage: job.same_lora_as(stage)
        for stage in fine_tuning_stages(job)
        if stage in short and job.lora(stage) is None
    }
    if same_as:
        loras = {stage: job.conversations(o).lora if o else Lora() for stage, o in same_as.items()}
        lines = "; and ".join(how_to_use_lora(stage, other) for stage, other in same_as.items())
        yield "By LoRA", _changed(job, loras, recompute=recompute), lines


# ---------------------------------------------------------------- a spot rental that may wait


def narrow_spot(job: Job, sky_yaml: SkyYaml, candidates: Sequence[Candidate]) -> str | None:
    """Return a warning if all `candidates` of a rental are spot machines in one region, or of one
    type of GPU; else None.

    The warning says which entries to add. A rental with an on-demand machine does not wait for
    spot.
    """
    mine = all((candidate.cloud or "").lower() in NO_CATALOG for candidate in candidates)
    if mine or not all(candidate.use_spot for candidate in candidates):
        return None
    sentences, entries, first = list[str](), list[Candidate](), candidates[0]
    if len({(candidate.cloud, candidate.region) for candidate in candidates}) == 1 and first.region:
        zone = first.zone if len({candidate.zone for candidate in candidates}) == 1 else None
        sentences.append(
            f"every machine is spot in {'/'.join(filter(None, (first.cloud, first.region, zone)))}:"
            " while there is none, the run waits. On recorded AWS markets, a second region "
            "shortened the median wait of a 28-hour run from 23 h to 0.5 h; a second zone of the "
            "same region did not."
        )
        entries += _elsewhere(job, sky_yaml, first)[:SUGGESTIONS]
    if len({candidate.gpu for candidate in candidates}) == 1 and first.gpu:
        sentences.append(
            f"every machine is a spot {first.gpu}: while none is free, the run waits. Other types "
            "of GPU may shorten the wait. That is unproven: no recorded market has several types."
        )
        entries += _of_other_gpus(job, sky_yaml, first)[:SUGGESTIONS]
    if not sentences:
        return None
    where = f"the list `ordered:` under `resources:` in {sky_yaml.path}"
    lines = "".join(f"\n- {_entry(candidate)}" for candidate in entries)
    sentences.append(f"Add to {where}:{lines}" if entries else f"Add entries to {where}.")
    return " ".join(sentences)


def _elsewhere(job: Job, sky_yaml: SkyYaml, first: Candidate) -> list[Candidate]:
    """Return the machine in the other regions of its cloud that have it, the cheapest first."""
    resources = first.resources.copy(region=None, zone=None)
    anywhere = replace(first, region=None, zone=None, resources=resources)
    prices = look_up(anywhere, sky_yaml.num_nodes, job.prices).elsewhere
    regions = (place.partition("/")[2] for place in sorted(prices, key=lambda p: (prices[p], p)))
    return [replace(first, region=region) for region in regions if region != first.region]


def _of_other_gpus(job: Job, sky_yaml: SkyYaml, first: Candidate) -> list[Candidate]:
    """Return the machine with the other types of GPU on which the job fits, the cheapest first."""
    offers, _ = market((), job.prices, counts=(first.count,), cloud=first.cloud)
    spot = [o for o in offers if o.use_spot and o.gpu != first.gpu and o.price is not None]
    return [
        replace(first, gpu=offer.gpu)
        for offer in cheapest_first(spot)
        if estimate(job, offer, num_nodes=sky_yaml.num_nodes).fits
    ]


def _entry(candidate: Candidate) -> str:
    """Return the YAML of a spot machine, in one line."""
    fields = {
        "infra": "/".join(filter(None, ((candidate.cloud or "").lower(), candidate.region))),
        "accelerators": candidate.gpu and f"{candidate.gpu}:{candidate.count}",
        "use_spot": "true",
    }
    return f"{{{', '.join(f'{name}: {value}' for name, value in fields.items() if value)}}}"
