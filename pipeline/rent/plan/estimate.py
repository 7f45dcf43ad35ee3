"""What a job takes on a machine: memory, micro-batch, speed, hours, dollars, and preemptions.

    loss per preemption L = RESTART_SECONDS + half the interval between saves
    hours on spot = (RESTART_SECONDS + training) × M / (M − L), one preemption every M seconds

M is the job's `checkpoint.preemption_hours`. Only training counts: preparing data, evaluation and
publishing are extra.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from pion.data.order import rows_per_rank
from pion.errors import BadInput
from pion.train.hardware import device_name, pick_device, pick_residual
from pion.train.memory import predict_memory
from pion.train.micro_batch import DoesNotFit, choose_sharing
from pion.train.phases import config_of_largest_phase, only_apart
from pion.train.rewards import rollout_bytes, rollout_rows
from pion.train.workload import Workload
from pipeline.job import Job
from pipeline.job.section import made
from pipeline.job.train_sections import phases_of
from pipeline.machine.gpus import GPU_TYPES, too_old
from pipeline.rent.plan.prices import RESTART_SECONDS, Offer
from pipeline.rent.plan.speeds import (
    NOTHING_KNOWN,
    Known,
    Speed,
    mean_over_phases,
    past_speed_on,
    speed_of_all,
    speed_on,
)
from pipeline.run.preflight import stage_with_few_rows
from pipeline.training.cadence import SaveCadence

# Training takes so many times as long as a forward pass: the backward pass takes twice as long.
FORWARD = 3
# What `--json` shows of a stage, among other values.
SHOWN = (
    "stage",
    "micro_batch",
    "grad_accum",
    "recompute",
    "tokens",
    "tokens_per_second",
    "speed_from",
    "measured",
    "reference_tokens",
    "joined",
    "by_phase",
)
# Sampling answers takes so many times as long as training on them (by arithmetic, not measured).
SAMPLING = 2.0


@dataclass(frozen=True, kw_only=True)
class StageEstimate(Speed):
    """One training stage on a machine, with the speed of all GPUs together.

    `problem` says why the stage does not fit: then its numbers are those of the smallest
    micro-batch. `tokens` is None while the steps are not known: they may follow from data to be
    prepared. Training on `reference_tokens` would take as long as computing the reference of
    preferences, or as sampling the answers of rewards.
    """

    stage: str
    micro_batch: int
    grad_accum: int
    recompute: bool
    in_memory: Workload  # the work that needs the most memory of a GPU
    tokens: int | None
    reference_tokens: int = 0
    joined: int = 1  # how many rows are read as one, where they are longest
    problem: BadInput | None = None

    @property
    def fits(self) -> bool:
        return self.problem is None

    def as_json(self) -> dict[str, Any]:
        """Return the values of `--json`, whose keys are pinned (tests/golden/json/keys.txt)."""
        return {name: getattr(self, name) for name in SHOWN} | {
            "sharded": self.in_memory.sharded,  # the GPUs divide the weights (hardware.fsdp)
            "peak_bytes": self.peak_bytes,
            "reference_seconds": self.reference_seconds,
        }

    @property
    def peak_bytes(self) -> int:
        """The most memory that the stage needs on one GPU, also where rows are read as one. To
        compare many machines, nobody asks, and a trace of this very micro-batch takes a second."""
        return max(
            predict_memory(
                replace(self.in_memory, seq_len=length * self.in_memory.seq_len),
                micro_batch=max(1, self.micro_batch // length),
                recompute=self.recompute,
            ).total
            for length in {1, self.joined}
        )

    @property
    def seconds(self) -> float | None:
        if self.tokens_per_second is None or self.tokens is None:
            return None
        return (self.tokens + self.reference_tokens) / self.tokens_per_second

    @property
    def reference_seconds(self) -> float | None:
        """The seconds of the pass that computes a reference, or in which answers are sampled. They
        are in `seconds`. None: there is none of these, or its time is not known."""
        if self.tokens_per_second is None or not self.reference_tokens:
            return None
        return self.reference_tokens / self.tokens_per_second


@dataclass(frozen=True)
class Estimate:
    """A whole job on an offer: a row of `pion plan`. None means unknown.

    `problem` is why the job does not fit, or would never finish.
    """

    offer: Offer
    stages: tuple[StageEstimate, ...] = ()
    problem: BadInput | None = None
    hours: float | None = None  # the loss to preemptions included
    lost_hours: float | None = None
    dollars: float | None = None

    @property
    def fits(self) -> bool:
        return self.problem is None

    @property
    def lacks(self) -> DoesNotFit | None:
        """The numbers of a problem that is a lack of memory."""
        return self.problem if isinstance(self.problem, DoesNotFit) else None

    @property
    def tokens(self) -> int:
        """The tokens of all stages, as far as their steps are known."""
        return sum(stage.tokens or 0 for stage in self.stages)

    @property
    def tokens_per_second(self) -> float | None:
        """The mean over all training stages."""
        return self.tokens / self.training_seconds if self.training_seconds else None

    @property
    def training_seconds(self) -> float | None:
        """The seconds of all stages, without boots and preemptions."""
        seconds = [stage.seconds for stage in self.stages]
        return None if None in seconds else sum(s for s in seconds if s is not None)

    @property
    def peak_bytes(self) -> int:
        """The most memory that a stage needs on one GPU."""
        return max((stage.peak_bytes for stage in self.stages), default=0)

    @property
    def measured(self) -> bool:
        """Whether the speed of each stage was measured."""
        return all(stage.measured for stage in self.stages)

    @property
    def sharded(self) -> bool:
        """Whether the GPUs divide the weights in some stage."""
        return any(stage.in_memory.sharded for stage in self.stages)

    @property
    def dollars_per_billion_tokens(self) -> float | None:
        return None if self.dollars is None else self.dollars / self.tokens * 1e9


def estimate(
    job: Job, offer: Offer, known: Known = NOTHING_KNOWN, *, num_nodes: int = 1
) -> Estimate:
    """Return what `job` takes on `num_nodes` machines of `offer`, with the speeds that are known
    of this model and of cards."""
    if offer.gpu is None:
        return Estimate(offer)
    gpu, workers = offer.gpu, workers_on(job, offer, num_nodes)
    few = stage_with_few_rows(job, workers)
    mistakes = made(
        {
            f"a {gpu} is too old: the installed torch needs compute capability 7.5": too_old(gpu),
            f"the memory of a {gpu} is unknown": offer.gpu_memory is None,
            f"{few}.global_batch is less than one row for each of the {workers} workers": few,
        }
    )
    if mistakes:
        return Estimate(offer, problem=BadInput(mistakes[0]))
    stages = tuple(
        estimate_stage(job, stage, offer, known, num_nodes=num_nodes) for stage in job.train_stages
    )
    row = Estimate(offer, stages, next((s.problem for s in stages if s.problem), None))
    if row.problem is not None or row.training_seconds is None:
        return row
    work = RESTART_SECONDS + row.training_seconds
    every = 3600 * job.checkpoint.preemption_hours
    lost = _lost_seconds(job, stages) if offer.use_spot else 0.0
    if lost >= every:
        why = (
            f"a preemption every {every / 60:.0f} min (checkpoint.preemption_hours) would cost "
            f"{lost / 60:.0f} min each time, so the job would never finish"
        )
        return replace(row, problem=BadInput(why))
    paid = work / (1 - lost / every)
    dollars = None if offer.price is None else paid / 3600 * offer.price * num_nodes
    return replace(row, hours=paid / 3600, lost_hours=(paid - work) / 3600, dollars=dollars)


def estimate_stage(
    job: Job, stage: str, offer: Offer, known: Known = NOTHING_KNOWN, *, num_nodes: int = 1
) -> StageEstimate:
    """Return a stage on GPUs whose memory is known, as its workers will choose to train it."""
    assert offer.gpu is not None
    assert offer.gpu_memory is not None
    workers, gpu = workers_on(job, offer, num_nodes), offer.gpu
    batch = job.section(stage).rows_of_step(job.seq_len(stage))
    rows, joined = rows_per_rank(batch, workers), job.joined(stage)
    work = workload_on(gpu, job, stage, workers)
    in_memory, fitting, recompute, problem = _fit(job, stage, work, rows, offer.gpu_memory)
    micro_batch = min(job.hardware.micro_batch or fitting, rows)

    def speed_of(length: int) -> Speed:  # where so many rows are read as one
        read, long = replace(work, seq_len=length * work.seq_len), batch // length
        single, micro = speed_on(gpu, read, known, recompute=recompute), micro_batch // length
        return speed_of_all(single, read, long, rows_per_rank(long, workers), max(1, micro))

    speed = mean_over_phases(job.mix_phases if stage == "pretrain" else [], speed_of)
    result = StageEstimate(
        **vars(speed),
        stage=stage,
        micro_batch=micro_batch,
        grad_accum=-(-rows // micro_batch),
        recompute=recompute,
        in_memory=in_memory,
        tokens=job.trained_tokens(stage),
        reference_tokens=_reference_tokens(job, stage),
        joined=joined,
        problem=problem,
    )
    if problem is None and micro_batch > fitting and result.peak_bytes > offer.usable_bytes:
        why = (
            f"hardware.micro_batch {micro_batch}: {stage} would need "
            f"{result.peak_bytes / 2**30:.1f} GiB of {offer.usable_bytes / 2**30:.1f} GiB. Remove "
            f"hardware.micro_batch, and {fitting} is used"
        )
        return replace(result, problem=BadInput(why))
    return result


def _fit(
    job: Job, stage: str, work: Workload, rows: int, memory_bytes: int
) -> tuple[Workload, int, bool, BadInput | None]:
    """Return the work of the phase that needs the most memory, as ranks share it; the micro-batch
    that fits; whether activations are recomputed; and why not even one row fits."""
    section, hardware = job.section(stage), job.hardware
    work = replace(work, config=config_of_largest_phase(phases_of(section), work.config))
    try:
        fitting = choose_sharing(
            work,
            sharded=False if work.sampling else hardware.sharded,
            rows_per_rank=rows,
            memory_bytes=memory_bytes,
            recompute=hardware.recompute,
            joined=job.joined(stage),
        )
    except DoesNotFit as error:
        return work, 1, hardware.recompute is not False, error
    return *fitting, None


def _reference_tokens(job: Job, stage: str) -> int:
    """Return how many trained tokens take as long as what a stage computes next to training: the
    reference, a forward pass over its rows, as far as these are known; or the answers."""
    section = job.section(stage)
    if section.sampled:
        return int(SAMPLING * (job.trained_tokens(stage) or 0))
    rows = section.rows if section.needs_reference else None
    return 0 if rows is None else rows * job.seq_len(stage) // FORWARD


def _lost_seconds(job: Job, stages: tuple[StageEstimate, ...]) -> float:
    """Return what a preemption costs: a restart, and half the time between two saves, as the run's
    policy sets it before it measures anything."""
    checkpoint = job.checkpoint
    cadence = SaveCadence(
        checkpoint.every_steps,
        checkpoint.every_seconds,
        3600 * checkpoint.preemption_hours,
        last_save=0.0,
    )
    step_seconds = [(s.seconds or 0.0) / job.section(s.stage).total_steps for s in stages]
    return RESTART_SECONDS + cadence.between_saves(max(step_seconds)) / 2


def seconds_here(job: Job, known: Known) -> float | None:
    """Return how long training takes on this machine, at the speeds that its runs of this model
    reached; None if they don't say it."""
    device, workers, total = device_name(pick_device()), job.hardware.min_workers or 1, 0.0
    for stage in job.train_stages:
        length, lora = job.seq_len(stage), job.lora(stage) is not None
        past = past_speed_on(known.runs, device, length, lora=lora)
        tokens = job.trained_tokens(stage)
        if past is None or tokens is None:
            return None
        total += (tokens + _reference_tokens(job, stage)) / (workers * past.tokens_per_second)
    return total


def workload_on(gpu: str, job: Job, stage: str, workers: int = 1) -> Workload:
    """Return what one of the GPUs of this type computes in a stage."""
    kind, hardware = GPU_TYPES.get(gpu), job.hardware
    config = job.model_config_resolved()
    dtype: Literal["bfloat16", "float32"] = kind.dtype(hardware.dtype) if kind else "bfloat16"
    seq_len, answers = job.seq_len(stage), job.section(stage).answers_of_rank(workers)
    memory = kind.memory if kind else 1 << 40
    sampled = rollout_rows(config, seq_len, dtype, answers, memory)
    return Workload(
        config,
        seq_len,
        dtype,
        job.section(stage).optimizer,
        "cuda",
        documents=job.has_documents(stage),
        sequences=job.section(stage).most_sequences(seq_len),
        compile=hardware.compile is not False,
        residual=pick_residual(hardware.residual, dtype, torch.device("cuda")),
        lora=job.lora(stage),
        only_apart=only_apart(phases_of(job.section(stage)), config),
        capability=kind.capability if kind else None,
        sampling=rollout_bytes(config, seq_len, dtype, sampled),
        ranks=workers,
    )


def workers_on(job: Job, offer: Offer, num_nodes: int = 1) -> int:
    """Return how many workers train on `num_nodes` machines of an offer: at least, if their number
    may change."""
    workers = job.hardware.min_workers
    return offer.count * num_nodes if workers is None else max(1, workers)
