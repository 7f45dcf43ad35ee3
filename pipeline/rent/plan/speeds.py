"""How fast a card is, from the best source that says it:

1. past runs of the job's model, in the job's store;
2. results of `pion bench`: this model measured, or the share of the peak that another reached;
3. the peak of the card, of which a model is assumed to reach `ASSUMED_MFU`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pion.bench.card import shipped_results
from pion.bench.results import Results, TrainSpeed, read_results, train_speeds
from pion.config.model_config import ModelConfig
from pion.config.presets import PRESETS
from pion.model.params_and_flops import flops_per_token
from pion.train.hardware import gpu_flops
from pion.train.workload import Workload
from pipeline.job import Job
from pipeline.job.digest import model_inputs
from pipeline.machine.folders import own_bench_files
from pipeline.machine.gpus import sky_names
from pipeline.machine.time_limit import within_or
from pipeline.rent.plan.gpus import GPU_TYPES
from pipeline.state.shared.speeds import (
    NOT_ABOUT_SPEED,
    PastSpeed,
    read_train_speeds,
)
from pipeline.state.stores import open_store

# The share of a GPU's peak that a model is assumed to reach if nobody has measured it. The
# published recipe of Pion-small reached this share on an A40 (64 × 2,048 tokens in 4.3 s).
ASSUMED_MFU = 0.15

# How many seconds reading a store may take.
SECONDS = 4.0
# Two numbers of FLOPs per token that differ by less are of the same model.
SAME = 1e-6


@dataclass(frozen=True)
class Speed:
    """The tokens per second of one GPU (None: unknown), and in words where that number comes from.

    `measured` is whether this model's speed was measured on such a GPU, and not estimated.
    `by_run` is whether a run measured the speed, so that the time of its host is in it.
    """

    tokens_per_second: float | None
    words: str
    measured: bool = False
    by_run: bool = False


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
    found = [read_results(path) for path in paths]
    return [r for r in found if not r.tiny and r.card.capability is not None]


def _of_bench(
    results: Sequence[Results], gpu: str, work: Workload, recompute: bool
) -> Speed | None:
    """Return what results of the GPU say about the work; None if they say nothing.

    A speed of this model and row length is measured. From the speed of another model, the share of
    the peak that this model reached is known, and the speed is an estimate.
    """
    rows = [
        (r, speed)
        for r in results
        if gpu in sky_names(r.card.card)
        for speed in train_speeds(r)
        if (speed.dtype, speed.compiled) == (work.dtype, work.compile)
    ]
    for r, speed in rows:
        if _is_that_of(speed, work, recompute):
            return Speed(speed.tokens_per_second, f"measured by {_source(r)}", True)
    total = work.flops().total
    # The model whose size is nearest, as a ratio, comes first.
    rows.sort(
        key=lambda row: (
            abs(math.log(row[1].flops_per_token / total)),
            row[1].documents != work.documents,
        )
    )
    for r, speed in rows:
        peak = gpu_flops(r.card.card, speed.dtype)
        if peak is not None:
            words = f"estimated: {speed.mfu:.0%} MFU, as {speed.model} reached in {_source(r)}"
            slower = recompute and not speed.recompute
            return Speed(_at_share(speed.mfu, peak, work, slower), words)
    return None


def _source(results: Results) -> str:
    """Return the card, the date and the torch of a result, in words."""
    card = results.card
    return f"`pion bench` ({card.card}, {results.date[:10]}, torch {card.torch})"


def _is_that_of(speed: TrainSpeed, work: Workload, recompute: bool) -> bool:
    """Return whether the work is what was measured: all weights, and rows that are alike."""
    measured = speed.seq_len, speed.recompute, speed.documents
    another = measured != (work.seq_len, recompute, work.documents)
    if another or work.lora is not None or speed.model not in PRESETS:
        return False
    preset = ModelConfig.preset(speed.model)
    same = {
        name: getattr(preset, name)
        for name in (path.removeprefix("model.") for path in NOT_ABOUT_SPEED)
    }
    if dataclasses.replace(work.config, **same) != preset:
        return False
    return math.isclose(speed.flops_per_token, flops_per_token(preset, speed.seq_len), rel_tol=SAME)


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
