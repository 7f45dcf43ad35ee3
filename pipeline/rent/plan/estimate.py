"""What a job takes on a machine: memory, micro-batch, speed, hours, dollars, and preemptions.

    tokens/s of one GPU = measured by earlier runs of the model or by `pion bench`,
                          or estimated: peak FLOP/s × MFU / FLOPs per token
    tokens/s of several = tokens of a step / seconds of the GPU with the most rows, each at
                          SHARE_OF_SEVERAL of its speed alone, unless a run has measured it;
                          no step is shorter than its host needs to start kernels
    loss per preemption L = RESTART_SECONDS + half the interval between saves
    hours on spot = (RESTART_SECONDS + training) × M / (M − L), one preemption every M seconds

M is the job's `checkpoint.preemption_hours`. Only training counts: preparing data, evaluation and
publishing are extra.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from pion.data.order import rows_per_rank
from pion.data.phased_order import MixPhase
from pion.errors import BadInput
from pion.train.hardware import device_name, pick_device, pick_residual
from pion.train.memory import predict_memory, rollout_rows
from pion.train.micro_batch import HEADROOM, DoesNotFit, choose_sharing
from pion.train.phases import config_of_largest_phase, only_apart
from pion.train.workload import Workload
from pipeline.job import Job
from pipeline.job.train_sections import phases_of
from pipeline.rent.plan.gpus import GPU_TYPES, too_old
from pipeline.rent.plan.prices import RESTART_SECONDS, Offer
from pipeline.rent.plan.speeds import NOTHING_KNOWN, Known, Speed, past_speed_on, speed_on
from pipeline.training.cadence import SaveCadence

# Training takes so many times as long as a forward pass: the backward pass takes twice as long.
FORWARD = 3
# Sampling answers takes so many times as long as training on them (by arithmetic, not measured).
SAMPLING = 2.0
# Each of several GPUs is taken to reach this share of its speed alone. Nobody has measured the time
# that they need to exchange gradients, updates and, if they divide them, weights.
SHARE_OF_SEVERAL = 0.9
# The hosts of a rented H200 and a rented H100 took 31 and 42 µs for each kernel of
# `pion2-max-small` (docs/performance.md). A slower or faster host is possible.
LAUNCH_SECONDS = 30e-6
# Kernels of a compiled block, forward and backward; embedding and loss count as one more block. An
# H100 ran 1,343 in a step of `pion-small`, whose 16 blocks count as 1,310 here.
LAUNCHES = 70
LAUNCHES_OF_UPDATE = 120  # clipping, Muon, AdamW, metrics
# Where a speed comes from that is not the card's.
HOST_LIMITS = (
    f"estimated: so small a step waits for its host, which starts a kernel in "
    f"{1e6 * LAUNCH_SECONDS:.0f} µs (as next to an H200)"
)


@dataclass(frozen=True)
class StageEstimate:
    """One training stage on a machine. `tokens_per_second` is of all GPUs together.

    `problem` says why the stage does not fit: then its numbers are those of the smallest
    micro-batch. `tokens` is None while the steps are not known: they may follow from data to be
    prepared. `measured` is whether this model's speed was measured on such GPUs, and not estimated.
    Training on `reference_tokens` would take as long as computing the reference of preferences, or
    as sampling the answers of rewards.
    """

    stage: str
    micro_batch: int
    grad_accum: int
    recompute: bool
    in_memory: Workload  # the work that needs the most memory of a GPU
    tokens: int | None
    tokens_per_second: float | None
    speed_from: str
    measured: bool = False
    reference_tokens: int = 0
    sharded: bool = False  # whether the GPUs divide the weights (hardware.fsdp)
    joined: int = 1  # how many rows are read as one, where they are longest
    by_phase: tuple[float, ...] = ()  # the tokens per second of each phase of pretraining
    problem: BadInput | None = None

    @property
    def fits(self) -> bool:
        return self.problem is None

    def as_json(self) -> dict[str, Any]:
        """Return the values of `--json`, whose keys are pinned (tests/golden/json/keys.txt)."""
        shown = [name for name in vars(self) if name not in ("in_memory", "problem")]
        names = [*shown, "peak_bytes", "reference_seconds"]
        return {name: getattr(self, name) for name in names}

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

    def seconds_of_phase(self, number: int, tokens: int) -> float | None:
        """Return how long a phase takes that reads so many tokens; None if that is not known."""
        return tokens / self.by_phase[number] if self.by_phase else None


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
        return any(stage.sharded for stage in self.stages)

    @property
    def dollars_per_billion_tokens(self) -> float | None:
        return None if self.dollars is None else self.dollars / self.tokens * 1e9

    def tokens_of_first_in(self, hours: float) -> float | None:
        """Return on how many tokens the first stage would train if the job took so many hours and
        its other stages stayed: hours grow linearly with tokens. None: its speed is not known."""
        if not self.training_seconds or self.hours is None:
            return None
        first = self.stages[0]
        paid = RESTART_SECONDS + self.training_seconds
        others = self.training_seconds - (first.seconds or 0.0)
        left = 3600 * hours / (3600 * self.hours / paid) - RESTART_SECONDS - others
        return left * (first.tokens_per_second or 0.0)


def estimate(
    job: Job, offer: Offer, known: Known = NOTHING_KNOWN, *, num_nodes: int = 1
) -> Estimate:
    """Return what `job` takes on `num_nodes` machines of `offer`, with the speeds that are known
    of this model and of cards."""
    if offer.gpu is None:
        return Estimate(offer)
    if (why := too_old(offer.gpu)) is not None:
        return Estimate(offer, problem=BadInput(why))
    if offer.gpu_memory is None:
        return Estimate(offer, problem=BadInput(f"the memory of a {offer.gpu} is unknown"))
    stages: tuple[StageEstimate, ...] = ()
    for stage in job.train_stages:
        stages += (estimate_stage(job, stage, offer, known, num_nodes=num_nodes),)
        if stages[-1].problem is not None:
            return Estimate(offer, problem=stages[-1].problem)
    unpriced = Estimate(offer, stages)
    if unpriced.training_seconds is None:
        return unpriced
    paid = work = RESTART_SECONDS + unpriced.training_seconds
    if offer.use_spot:
        every, lost = 3600 * job.checkpoint.preemption_hours, _lost_seconds(job, stages)
        if lost >= every:
            why = (
                f"a preemption every {every / 60:.0f} min (checkpoint.preemption_hours) would cost "
                f"{lost / 60:.0f} min each time, so the job would never finish"
            )
            return replace(unpriced, problem=BadInput(why))
        paid = work * every / (every - lost)
    hours = paid / 3600
    dollars = None if offer.price is None else hours * offer.price * num_nodes
    return replace(unpriced, hours=hours, lost_hours=(paid - work) / 3600, dollars=dollars)


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
        one, micro = speed_on(gpu, read, known, recompute=recompute), max(1, micro_batch // length)
        return _of_all(one, read, long, rows_per_rank(long, workers), micro)

    reached, by_phase = _over_phases(job.mix_phases if stage == "pretrain" else [], speed_of)
    found = StageEstimate(
        stage=stage,
        micro_batch=micro_batch,
        grad_accum=-(-rows // micro_batch),
        recompute=recompute,
        in_memory=in_memory,
        tokens=_tokens(job, stage),
        tokens_per_second=reached.tokens_per_second,
        speed_from=reached.words,
        measured=reached.measured,
        reference_tokens=_reference_tokens(job, stage),
        sharded=in_memory.sharded,
        joined=joined,
        by_phase=by_phase,
        problem=problem,
    )
    if problem is None and micro_batch > fitting:
        return _refuse_micro_batch(found, offer.gpu_memory, fitting)
    return found


def _fit(
    job: Job, stage: str, work: Workload, rows: int, memory_bytes: int
) -> tuple[Workload, int, bool, BadInput | None]:
    """Return the work of the phase that needs the most memory, as ranks share it; the micro-batch
    that fits; whether activations are recomputed; and why not even one row fits."""
    section, hardware = job.section(stage), job.hardware
    largest = config_of_largest_phase(phases_of(section), work.config)
    work = replace(work, config=largest)
    try:
        fitting = choose_sharing(
            work,
            sharded=hardware.sharded if section.reinforcement is None else False,
            rows_per_rank=rows,
            memory_bytes=memory_bytes,
            recompute=hardware.recompute,
            joined=job.joined(stage),
        )
    except DoesNotFit as error:
        return work, 1, hardware.recompute is not False, error
    return *fitting, None


def _refuse_micro_batch(found: StageEstimate, memory_bytes: int, fitting: int) -> StageEstimate:
    """Return a stage with the problem of a micro-batch that the job fixes, if it needs more memory
    than there is. `fitting` rows would be chosen."""
    usable = int(memory_bytes * (1 - HEADROOM))
    if found.peak_bytes <= usable:
        return found
    why = (
        f"hardware.micro_batch {found.micro_batch}: {found.stage} would need "
        f"{found.peak_bytes / 2**30:.1f} GiB of {usable / 2**30:.1f} GiB. Remove "
        f"hardware.micro_batch, and {fitting} is used"
    )
    return replace(found, problem=BadInput(why))


def _over_phases(
    phases: Sequence[MixPhase], speed_of: Callable[[int], Speed]
) -> tuple[Speed, tuple[float, ...]]:
    """Return the mean speed over phases, and the tokens per second of each. `speed_of` says the
    speed where so many rows are read as one."""
    speeds = [speed_of(phase.length) for phase in phases]
    reached = [speed.tokens_per_second for speed in speeds if speed.tokens_per_second]
    if not phases or len(reached) < len(speeds):
        return speed_of(1), ()
    time = sum(phase.rows / speed for phase, speed in zip(phases, reached))
    mean = sum(phase.rows for phase in phases) / time
    measured = all(speed.measured for speed in speeds)
    return replace(speeds[0], tokens_per_second=mean, measured=measured), tuple(reached)


def _of_all(one: Speed, work: Workload, batch: int, rows: int, micro_batch: int) -> Speed:
    """Return the speed of all GPUs in steps of `batch` rows, of which the busiest GPU computes
    `rows`. `one` is the speed of one GPU alone; if a run measured it, of one of the run's GPUs."""
    if one.tokens_per_second is None:
        return one
    share = SHARE_OF_SEVERAL if work.ranks > 1 and not one.by_run else 1.0
    seconds = rows * work.seq_len / (share * one.tokens_per_second)
    passes = math.ceil(rows / micro_batch)
    starting = LAUNCH_SECONDS * (
        passes * LAUNCHES * (work.config.n_layers + 1) + LAUNCHES_OF_UPDATE
    )
    if not one.by_run and starting >= seconds:
        return Speed(batch * work.seq_len / starting, HOST_LIMITS)
    if work.ranks == 1:
        return one
    reached = replace(one, tokens_per_second=batch * work.seq_len / seconds)
    if one.by_run:
        return reached
    words = f"{one.words}, and each of several GPUs at {share:.0%} of that: not measured"
    return replace(reached, words=words, measured=False)


def _tokens(job: Job, stage: str) -> int | None:
    """Return the tokens of a stage; None while its steps are not known."""
    section, length = job.section(stage), job.seq_len(stage)
    if not section.steps_are_known:
        return None
    return section.total_steps * section.rows_of_step(length) * length


def _reference_tokens(job: Job, stage: str) -> int:
    """Return how many trained tokens take as long as what a stage computes next to training: the
    reference, a forward pass over its rows, as far as these are known; or the answers."""
    section = job.section(stage)
    if section.reinforcement is not None:
        return int(SAMPLING * (_tokens(job, stage) or 0))
    rows = section.rows if job.needs_reference(stage) else None
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
        tokens = _tokens(job, stage)
        if past is None or tokens is None:
            return None
        total += (tokens + _reference_tokens(job, stage)) / (workers * past.tokens_per_second)
    return total


def workload_on(gpu: str, job: Job, stage: str, workers: int = 1) -> Workload:
    """Return what one of the GPUs of this type computes in a stage."""
    kind, hardware = GPU_TYPES.get(gpu), job.hardware
    config = job.model_config_resolved()
    dtype: Literal["bfloat16", "float32"] = kind.dtype(hardware.dtype) if kind else "bfloat16"
    seq_len, answers = job.seq_len(stage), job.answers_of_rank(stage, workers)
    return Workload(
        config,
        seq_len,
        dtype,
        job.section(stage).optimizer,
        "cuda",
        documents=job.has_documents(stage),
        sequences=job.most_sequences(stage),
        compile=hardware.compile is not False,
        residual=pick_residual(hardware.residual, dtype, torch.device("cuda")),
        lora=job.lora(stage),
        only_apart=only_apart(phases_of(job.section(stage)), config),
        capability=kind.capability if kind else None,
        rollout_rows=rollout_rows(
            config, seq_len, dtype, answers, kind.memory if kind else 1 << 40
        ),
        ranks=workers,
    )


def workers_on(job: Job, offer: Offer, num_nodes: int = 1) -> int:
    """Return how many workers train on `num_nodes` machines of an offer: at least, if their number
    may change."""
    asked = job.hardware.min_workers
    return offer.count * num_nodes if asked is None else max(1, asked)
