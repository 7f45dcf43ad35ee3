"""Measure for how long a save stops training: the copy of the state to page-locked memory."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from pion.bench.models import Bench, Rows, row_tokens
from pion.bench.results import Outcome
from pion.bench.speed.speeds import SaveSpeed
from pion.config import ModelConfig
from pion.model.decoder import Decoder
from pion.train.hardware import pick_dtype
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.trainer import Trainer

COPIES = 5


def measure_saving(bench: Bench, config: ModelConfig) -> Outcome:
    """Train a step, then copy weights and optimizer state several times."""
    seq_len = row_tokens(config)
    dtype = pick_dtype("auto", bench.device)
    settings = TrainSettings(steps=2, global_batch=1, lr=1e-4, optimizer="muon")
    with torch.device(bench.device):
        model = Decoder(config)
    stream: Any = Rows(config.vocab_size, seq_len)
    trainer = Trainer(model, stream, settings, ComputePlan(str(bench.device), dtype))
    with contextlib.closing(trainer):
        trainer.train_step()
        state = trainer.state()
    tensors = [
        tensor.detach() for part in (state.model, state.optimizer) for tensor in part.values()
    ]
    room = [torch.empty(tensor.shape, dtype=tensor.dtype) for tensor in tensors]
    if bench.on_cuda:
        room = [tensor.pin_memory() for tensor in room]
    seconds = [_copy(bench, tensors, room) for _ in range(COPIES + 1)][1:]
    stall, count = statistics.median(seconds), sum(t.nbytes for t in tensors)
    speed = SaveSpeed(bytes=count, stall_seconds=stall, bytes_per_second=count / stall)
    return Outcome(
        "measured",
        f"training stops for {stall:.3f} s; {count / 1e9:.3g} GB, copied at "
        f"{speed.bytes_per_second / 1e9:.3g} GB/s",
        dataclasses.asdict(speed),
    )


def _copy(bench: Bench, tensors: list[Tensor], room: list[Tensor]) -> float:
    """Return the seconds of one copy, as a checkpoint makes it."""
    started = time.perf_counter()
    for place, tensor in zip(room, tensors, strict=True):
        place.copy_(tensor, non_blocking=True)
    if bench.on_cuda:
        torch.cuda.synchronize(bench.device)
    return time.perf_counter() - started
