"""How fast cards train, from the best source that says it:

1. past runs of the job's model, in the job's store;
2. results of `pion bench`: this model measured, or the share of the peak that another reached;
3. the peak of the card, of which a model is assumed to reach `ASSUMED_MFU`.

    tokens/s of several = tokens of a step / seconds of the card with the most rows, each at
                          SHARE_OF_SEVERAL of its speed alone, unless a run has measured it;
                          no step is shorter than its host needs to start kernels
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pion.bench.card import shipped_results
from pion.bench.results import Results, TrainSpeed, read_results, train_speeds
from pion.config.model_config import ModelConfig
from pion.config.presets import PRESETS
from pion.data.phased_order import MixPhase
from pion.model.params_and_flops import flops_per_token
from pion.train.hardware import gpu_flops
from pion.train.workload import Workload
from pipeline.job import Job
from pipeline.job.digest import model_inputs
from pipeline.machine.folders import own_bench_files
from pipeline.machine.gpus import GPU_TYPES, sky_names
from pipeline.machine.time_limit import within_or
from pipeline.state.shared.speeds import PastSpeed, about_speed, read_train_speeds
from pipeline.state.stores import open_store

# The share of a GPU's peak that a model is assumed to reach if nobody has measured it. The
# published recipe of Pion-small reached this share on an A40 (64 × 2,048 tokens in 4.3 s).
ASSUMED_MFU = 0.15

# How many seconds reading a store may take.
SECONDS = 4.0
# Two numbers of FLOPs per token that differ by less are of the same model.
SAME = 1e-6

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
class Speed:
    """The tokens per second of one GPU or of all (None: unknown), and in words where that number
    comes from.

    `measured` is whether this model's speed was measured on such a GPU, and not estimated.
    `by_run` is whether a run measured the speed, so that the time of its host is in it. `by_phase`
    has the tokens per second of each phase of pretraining.
    """

    tokens_per_second: float | None
    speed_from: str
    measured: bool = False
    by_run: bool = False
    by_phase: tuple[float, ...] = ()


@dataclass(frozen=True)
class Known:
    """What was measured: by past runs of the job's model, and by `pion bench` on cards."""

    runs: Sequence[PastSpeed] = ()
    bench: Sequence[Results] = ()


NOTHING_KNOWN = Known()


def known_speeds(job: Job, bench: Sequence[str] = ()) -> Known:
    """Return what was measured of a job's model, and of cards. `bench` names results of `pion
    bench`, which come before this user's. Raises BadInput for a file that is no result."""
    return Known(bench=bench_results(bench), runs=past_speeds(job))


def speed_on(gpu: str, work: Workload, known: Known, *, recompute: bool) -> Speed:
    """Return how fast one GPU does the work, from the best source that says it. `recompute` is
    whether activations are recomputed."""
    past = past_speed_on(known.runs, gpu, work.seq_len, lora=work.lora is not None)
    if past is not None:
        return Speed(past.tokens_per_second, f"measured in run {past.run}", True, by_run=True)
    return _of_bench(known.bench, gpu, work, recompute) or _of_peak(gpu, work, recompute)


# ---------------------------------------------------------------- 1. past runs of the model


def past_speed_on(
    runs: Sequence[PastSpeed], gpu: str, seq_len: int, *, lora: bool
) -> PastSpeed | None:
    """Return the newest of the speeds, the newest first, of rows of `seq_len` on this GPU.

    `gpu` is SkyPilot's name of it, or CUDA's. `lora` is whether a frozen model with additions was
    trained, or all weights.
    """
    alike = (s for s in runs if (s.seq_len, s.lora) == (seq_len, lora))
    return next((s for s in alike if gpu in (s.device, *sky_names(s.device))), None)


def past_speeds(job: Job) -> list[PastSpeed]:
    """Return the speeds that this job's model reached in its store, the newest first.

    Return nothing if the store can't be read in time: callers then assume a speed.
    """
    model = model_inputs(job.model_config_resolved())
    return within_or([], SECONDS, lambda: read_train_speeds(open_store(job.store), model))


# ---------------------------------------------------------------- 2. results of `pion bench`


def bench_results(files: Sequence[str]) -> list[Results]:
    """Return the results of cards: the given files first, then this user's, then Pion's own.

    Results of tiny models, and of CPUs, say nothing about a GPU and are left out. Raises BadInput
    that names the file for a file that can't be read or is no result.
    """
    paths = [*(Path(file) for file in files), *own_bench_files(), *shipped_results()]
    results = [read_results(path) for path in paths]
    return [r for r in results if not r.tiny and r.card.capability is not None]


def _of_bench(
    results: Sequence[Results], gpu: str, work: Workload, recompute: bool
) -> Speed | None:
    """Return what results of the GPU say about the work; None if they say nothing.

    A speed of this model and row length is measured. From the speed of another model, the share of
    the peak that this model reached is known, and the speed is an estimate.
    """
    rows = [
        (speed, f"`pion bench` ({r.card.card}, {r.date[:10]}, torch {r.card.torch})", peak)
        for r in results
        if gpu in sky_names(r.card.card)
        for speed in train_speeds(r)
        if (speed.dtype, speed.compiled) == (work.dtype, work.compile)
        for peak in [gpu_flops(r.card.card, speed.dtype)]
    ]
    for speed, bench, _ in rows:
        if _is_that_of(speed, work, recompute):
            return Speed(speed.tokens_per_second, f"measured by {bench}", True)
    total = work.flops().total
    # The model whose size is nearest, as a ratio, comes first.
    rows.sort(
        key=lambda row: (
            abs(math.log(row[0].flops_per_token / total)),
            row[0].documents != work.documents,
        )
    )
    for speed, bench, peak in rows:
        if peak is not None:
            source = f"estimated: {speed.mfu:.0%} MFU, as {speed.model} reached in {bench}"
            slower = recompute and not speed.recompute
            return Speed(_at_share(speed.mfu, peak, work, slower), source)
    return None


def _is_that_of(speed: TrainSpeed, work: Workload, recompute: bool) -> bool:
    """Return whether the work is what was measured: all weights, and rows that are alike."""
    if work.lora is not None or speed.model not in PRESETS:
        return False
    preset = ModelConfig.preset(speed.model)
    per_token = flops_per_token(preset, speed.seq_len)
    return (
        (speed.seq_len, speed.recompute, speed.documents)
        == (work.seq_len, recompute, work.documents)
        and about_speed(model_inputs(preset)) == about_speed(model_inputs(work.config))
        and math.isclose(speed.flops_per_token, per_token, rel_tol=SAME)
    )


# ---------------------------------------------------------------- 3. the peak of the card


def _of_peak(gpu: str, work: Workload, recompute: bool) -> Speed:
    peak = gpu_flops(GPU_TYPES[gpu].cuda, work.dtype) if gpu in GPU_TYPES else None
    if peak is None:
        return Speed(None, f"the speed of a {gpu} is unknown")
    reached = _at_share(ASSUMED_MFU, peak, work, recompute)
    return Speed(reached, f"estimated: {ASSUMED_MFU:.0%} MFU assumed")


def _at_share(share: float, peak: float, work: Workload, slower: bool) -> float:
    """Return the tokens per second at a share of the peak, which is that of recomputed activations
    unless the work is `slower`."""
    arithmetic = work.flops()
    return share * peak / arithmetic.total * (arithmetic.share_if_recomputed if slower else 1.0)


# ---------------------------------------------------------------- all GPUs, all phases


def speed_of_all(single: Speed, work: Workload, batch: int, rows: int, micro_batch: int) -> Speed:
    """Return the speed of all GPUs in steps of `batch` rows, of which the busiest GPU computes
    `rows`. `single` is the speed of one GPU alone; if a run measured it, of one of the run's
    GPUs."""
    if single.tokens_per_second is None:
        return single
    alone = single.by_run or work.ranks == 1
    reached = single.tokens_per_second * batch / rows * (1.0 if alone else SHARE_OF_SEVERAL)
    launches = math.ceil(rows / micro_batch) * LAUNCHES * (work.config.n_layers + 1)
    at_most = batch * work.seq_len / (LAUNCH_SECONDS * (launches + LAUNCHES_OF_UPDATE))
    if not single.by_run and reached >= at_most:
        return Speed(at_most, HOST_LIMITS)
    if alone:
        return replace(single, tokens_per_second=reached)
    share = f"{SHARE_OF_SEVERAL:.0%} of that: not measured"
    return Speed(reached, f"{single.speed_from}, and each of several GPUs at {share}")


def mean_over_phases(phases: Sequence[MixPhase], speed_of: Callable[[int], Speed]) -> Speed:
    """Return the mean speed over phases. `speed_of` says the speed where so many rows are read as
    one."""
    speeds = [speed_of(phase.length) for phase in phases]
    reached = [speed.tokens_per_second for speed in speeds if speed.tokens_per_second]
    if not phases or len(reached) < len(speeds):
        return speed_of(1)
    time = sum(phase.rows / speed for phase, speed in zip(phases, reached))
    return replace(
        speeds[0],
        tokens_per_second=sum(phase.rows for phase in phases) / time,
        measured=all(speed.measured for speed in speeds),
        by_phase=tuple(reached),
    )
