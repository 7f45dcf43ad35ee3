"""What a job takes on a machine: memory, micro-batch, speed, hours, dollars, and preemptions.

    tokens/s = measured by earlier runs of the model or by `pion bench`,
               or estimated: peak FLOP/s × MFU / FLOPs per token
    loss per preemption L = RESTART_SECONDS + half the interval between saves
    hours on spot = (RESTART_SECONDS + training) × M / (M − L), one preemption every M seconds

M is the job's `checkpoint.preemption_hours`. Only training counts: preparing data, evaluation and
publishing are extra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pion.bench.results import Results
from pion.data.order import rows_per_rank
from pion.errors import BadInput
from pion.train.hardware import gpu_flops
from pion.train.memory import predict_memory
from pion.train.micro_batch import HEADROOM, DoesNotFit, choose_micro_batch
from pipeline.job import Job
from pipeline.rent.plan.bench_speeds import Training, bench_speed
from pipeline.rent.plan.gpus import GPU_TYPES, too_old
from pipeline.rent.plan.prices import Offer
from pipeline.rent.plan.speeds import Speed, speed_on
from pipeline.rent.plan.workload import largest_phase, workers_on, workload_on
from pipeline.training.cadence import SaveCadence

# The share of a GPU's peak that a model is assumed to reach if nobody has measured it. The
# published recipe of Pion-small reached this share on an A40 (64 × 2,048 tokens in 4.3 s).
ASSUMED_MFU = 0.15
# The assumed time from when a machine is paid for to its first step: boot, install, restore. `pion
# replay` uses the measured time if the run has one.
RESTART_SECONDS = 120.0


@dataclass(frozen=True)
class Known:
    """What was measured: by runs of the job's model, and by `pion bench` on cards."""

    runs: list[Speed]
    bench: Sequence[Results]


@dataclass(frozen=True)
class StageEstimate:
    """One training stage on a machine. `tokens_per_second` is the sum of all GPUs.

    `tokens` is None while the steps are not known: they may follow from data to be prepared.
    `measured` is whether this model's speed was measured on such a GPU, and not estimated.
    """

    stage: str
    micro_batch: int
    grad_accum: int
    recompute: bool
    peak_bytes: int  # of one GPU
    tokens: int | None
    tokens_per_second: float | None
    speed_from: str
    measured: bool = False

    @property
    def seconds(self) -> float | None:
        if self.tokens_per_second is None or self.tokens is None:
            return None
        return self.tokens / self.tokens_per_second


@dataclass(frozen=True)
class Estimate:
    """A whole job on an offer. None means unknown; `problem` says why the job does not fit.

    `lacks` has the numbers of a problem that is a lack of memory.
    """

    offer: Offer
    stages: tuple[StageEstimate, ...]
    problem: str | None
    hours: float | None = None  # the loss to preemptions included
    lost_hours: float | None = None
    dollars: float | None = None
    lacks: DoesNotFit | None = None

    @property
    def fits(self) -> bool:
        return self.problem is None

    @property
    def tokens(self) -> int:
        """The tokens of all stages, as far as their steps are known."""
        return sum(stage.tokens or 0 for stage in self.stages)

    @property
    def tokens_per_second(self) -> float | None:
        """The mean over all training stages."""
        seconds = [stage.seconds for stage in self.stages]
        known = [s for s in seconds if s is not None]
        return self.tokens / sum(known) if known and len(known) == len(seconds) else None

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
    def dollars_per_billion_tokens(self) -> float | None:
        return None if self.dollars is None else self.dollars / self.tokens * 1e9


def estimate(
    job: Job,
    offer: Offer,
    speeds: list[Speed],
    *,
    num_nodes: int = 1,
    bench: Sequence[Results] = (),
) -> Estimate:
    """Return what `job` takes on `num_nodes` machines of `offer`.

    Speeds are those of earlier runs, or else of the results of `pion bench`.
    """
    if offer.gpu is None:
        return Estimate(offer, (), None)
    if (why := too_old(offer.gpu)) is not None:
        return Estimate(offer, (), why)
    if offer.gpu_memory is None:
        return Estimate(offer, (), f"the memory of a {offer.gpu} is unknown")
    workers = workers_on(job, offer, num_nodes)
    try:
        stages = tuple(
            _stage(job, stage, offer, workers, Known(speeds, bench)) for stage in job.train_stages
        )
    except DoesNotFit as error:
        return Estimate(offer, (), str(error), lacks=error)
    except BadInput as error:
        return Estimate(offer, (), str(error))
    seconds = [stage.seconds for stage in stages]
    if any(s is None for s in seconds):
        return Estimate(offer, stages, None)
    work = RESTART_SECONDS + sum(s for s in seconds if s is not None)
    if not offer.use_spot:
        return _priced(offer, stages, work, 0.0, num_nodes)
    every = 3600 * job.checkpoint.preemption_hours
    lost = RESTART_SECONDS + _save_interval(job, stages) / 2
    if lost >= every:
        problem = (
            f"a preemption every {every / 60:.0f} min (checkpoint.preemption_hours) would cost "
            f"{lost / 60:.0f} min each time, so the job would never finish"
        )
        return Estimate(offer, stages, problem)
    paid = work * every / (every - lost)
    return _priced(offer, stages, paid, paid - work, num_nodes)


def _priced(
    offer: Offer, stages: tuple[StageEstimate, ...], paid: float, lost: float, num_nodes: int
) -> Estimate:
    hours = paid / 3600
    dollars = None if offer.price is None else hours * offer.price * num_nodes
    return Estimate(offer, stages, None, hours, lost / 3600, dollars)


def _stage(job: Job, stage: str, offer: Offer, workers: int, known: Known) -> StageEstimate:
    """Return a stage's plan, as its workers will choose it. Raises BadInput if it does not fit."""
    assert offer.gpu is not None
    assert offer.gpu_memory is not None
    section, hardware = job.section(stage), job.hardware
    rows = rows_per_rank(section.global_batch, workers)
    work = workload_on(offer.gpu, job, stage)
    in_memory = largest_phase(work, job, stage)
    derived, recompute = choose_micro_batch(
        in_memory, rows_per_rank=rows, memory_bytes=offer.gpu_memory, recompute=hardware.recompute
    )
    micro_batch = min(hardware.micro_batch or derived, rows)
    peak = predict_memory(in_memory, micro_batch=micro_batch, recompute=recompute).total
    usable = int(offer.gpu_memory * (1 - HEADROOM))
    if peak > usable:
        raise BadInput(
            f"hardware.micro_batch {micro_batch}: {stage} would need {peak / 2**30:.1f} GiB of "
            f"{usable / 2**30:.1f} GiB. Remove hardware.micro_batch, and {derived} is used"
        )
    training = Training(work, work.compile, recompute)
    speed = _speed(offer.gpu, training, known)
    return StageEstimate(
        stage=stage,
        micro_batch=micro_batch,
        grad_accum=-(-rows // micro_batch),
        recompute=recompute,
        peak_bytes=peak,
        tokens=section.total_steps * section.global_batch * work.seq_len
        if section.steps_are_known
        else None,
        tokens_per_second=None if speed.one_gpu is None else speed.one_gpu * workers,
        speed_from=speed.words,
        measured=speed.measured,
    )


@dataclass(frozen=True)
class _Speed:
    """The tokens per second of one GPU (None: unknown), and where that number comes from."""

    one_gpu: float | None
    words: str
    measured: bool = False


def _speed(gpu: str, how: Training, known: Known) -> _Speed:
    work = how.work
    measured = speed_on(known.runs, gpu, work.seq_len, lora=work.lora is not None)
    if measured is not None:
        return _Speed(measured.tokens_per_second, f"measured in run {measured.run}", True)
    arithmetic = work.flops()
    found = bench_speed(known.bench, gpu, how)
    if found is not None:
        slower = 1.0 if found.as_is else arithmetic.share_if_recomputed
        return _Speed(found.tokens_per_second * slower, found.words, found.measured)
    flops = gpu_flops(GPU_TYPES[gpu].cuda, work.dtype) if gpu in GPU_TYPES else None
    if flops is None:
        return _Speed(None, f"the speed of a {gpu} is unknown")
    speed = flops * ASSUMED_MFU / arithmetic.total
    slower = arithmetic.share_if_recomputed if how.recompute else 1.0
    return _Speed(speed * slower, f"estimated: {ASSUMED_MFU:.0%} MFU assumed")


def _save_interval(job: Job, stages: tuple[StageEstimate, ...]) -> float:
    """Return the seconds between saves, as the run's policy sets them before it measures
    anything."""
    checkpoint = job.checkpoint
    cadence = SaveCadence(
        checkpoint.every_steps,
        checkpoint.every_seconds,
        3600 * checkpoint.preemption_hours,
        last_save=0.0,
    )
    if checkpoint.every_steps is None or checkpoint.every_seconds is not None:
        return cadence.interval
    step_seconds = [(s.seconds or 0.0) / job.section(s.stage).total_steps for s in stages]
    return checkpoint.every_steps * max(step_seconds)
