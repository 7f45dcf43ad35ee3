"""How fast a card was in `pion bench`: results given by name, this user's, and Pion's."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pion.bench.card import shipped_results
from pion.bench.results import Results, TrainSpeed, read_results, save_speeds, train_speeds
from pion.config import ModelConfig
from pion.model.params_and_flops import flops_per_token
from pion.presets import PRESETS
from pion.train.hardware import gpu_flops
from pion.train.memory import Workload
from pipeline.machine.folders import own_bench_files
from pipeline.machine.gpus import sky_names
from pipeline.rent.plan.speeds import NOT_ABOUT_SPEED

# Two numbers of FLOPs per token that differ by less are of the same model.
SAME = 1e-6


@dataclass(frozen=True)
class Training:
    """How a stage trains on a GPU, apart from its micro-batch."""

    work: Workload
    compiled: bool
    recompute: bool


@dataclass(frozen=True)
class BenchSpeed:
    """Tokens per second of one GPU, and in words where the number comes from.

    `as_is` is false if a model was measured that does not recompute activations, and the stage has
    to. `measured` is whether it was this model.
    """

    tokens_per_second: float
    words: str
    as_is: bool
    measured: bool = False


def bench_results(files: Sequence[str]) -> list[Results]:
    """Return the results of cards: the given files first, then this user's, then Pion's own.

    Results of tiny models, and of CPUs, say nothing about a GPU and are left out. Raises BadInput
    that names the file for a file that can't be read or is no result.
    """
    paths = [*(Path(file) for file in files), *own_bench_files(), *shipped_results()]
    found = [read_results(path) for path in paths]
    return [r for r in found if not r.tiny and r.card.capability is not None]


def bench_speed(results: Sequence[Results], gpu: str, how: Training) -> BenchSpeed | None:
    """Return what results of the GPU say about training; None if they say nothing.

    A speed of this model and row length is measured. From the speed of another model, the share of
    the peak that this model reached is known, and the speed is an estimate.
    """
    rows = [
        (r, speed)
        for r in _of_gpu(results, gpu)
        for speed in train_speeds(r)
        if (speed.dtype, speed.compiled) == (how.work.dtype, how.compiled)
    ]
    for r, speed in rows:
        if _is_that_of(speed, how):
            return BenchSpeed(speed.tokens_per_second, f"measured by {_source(r)}", True, True)
    per_token = how.work.flops().total
    for r, speed in sorted(rows, key=lambda row: _distance(row[1], per_token)):
        peak = gpu_flops(r.card.card, speed.dtype)
        if peak is not None:
            words = f"estimated: {speed.mfu:.0%} MFU, as {speed.model} reached in {_source(r)}"
            as_is = speed.recompute or not how.recompute
            return BenchSpeed(speed.mfu * peak / per_token, words, as_is)
    return None


def copy_speed(results: Sequence[Results], gpu: str) -> tuple[float, str] | None:
    """Return at how many bytes per second a save copies a training state, and who measured it."""
    for r in _of_gpu(results, gpu):
        for speed in save_speeds(r):
            return speed.bytes_per_second, _source(r)
    return None


def _of_gpu(results: Sequence[Results], gpu: str) -> Iterator[Results]:
    """Yield the results of the GPU that SkyPilot calls `gpu`."""
    return (r for r in results if gpu in sky_names(r.card.card))


def _source(results: Results) -> str:
    """Return the card, the date and the torch of a result, in words."""
    card = results.card
    return f"`pion bench` ({card.card}, {results.date[:10]}, torch {card.torch})"


def _is_that_of(speed: TrainSpeed, how: Training) -> bool:
    """Return whether the stage does what was measured: all weights, no rows of documents."""
    work = how.work
    if (speed.seq_len, speed.recompute) != (work.seq_len, how.recompute):
        return False
    if work.documents or work.lora is not None or speed.model not in PRESETS:
        return False
    preset = ModelConfig.preset(speed.model)
    same = {
        name: getattr(preset, name)
        for name in (path.removeprefix("model.") for path in NOT_ABOUT_SPEED)
    }
    if dataclasses.replace(work.config, **same) != preset:
        return False
    return math.isclose(speed.flops_per_token, flops_per_token(preset, speed.seq_len), rel_tol=SAME)


def _distance(speed: TrainSpeed, per_token: float) -> float:
    """Return how much larger or smaller the measured model is, as a logarithm."""
    return abs(math.log(speed.flops_per_token / per_token))
