"""Measure what saving costs: the stall of each save, and the lost training throughput.

    uv run python -m benchmarks.checkpoint [--rounds 30] [--shapes PRESET:MICRO_BATCH:SEQ_LEN …]

Windows of the same training steps are timed in pairs: one with a save at its beginning and one
without, in alternating order. A window is only a little longer than a save; in a longer window the
noise of the steps would hide the cost of the save. The median of that cost, divided by two minutes,
is the throughput lost when saving every two minutes. The state is real (model and AdamW moments),
and the store is a folder on this machine's disk. Writes benchmarks/results/checkpoint.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import torch

from pion.config.model_config import ModelConfig
from pion.data.stream import Batch, RowStream
from pion.model.decoder import Decoder
from pion.train.hardware import device_name, pick_device, pick_dtype
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.trainer import Trainer
from pipeline.state.checkpoints.checkpointer import Checkpointer, CheckpointSeries
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore

RESULT = Path(__file__).parent / "results" / "checkpoint.json"
SAVE_EVERY_SECONDS = 120.0
# The mean seconds between preemptions for which the Young-Daly interval is computed.
PREEMPTION_SECONDS = 7200.0
# The length of a window, as a multiple of the duration of the first save.
LONGER_THAN_A_SAVE = 2.5


class RandomRows:
    """Endless rows of random ids."""

    def __init__(self, vocab_size: int, seq_len: int) -> None:
        self._shape, self._vocab_size = (seq_len,), vocab_size

    def batch(self, indices: Any) -> Batch:
        tokens = torch.randint(0, self._vocab_size, (len(list(indices)), *self._shape))
        return Batch(tokens, tokens.roll(-1, dims=1), None, None)


def make_trainer(preset: str, micro_batch: int, seq_len: int) -> Trainer:
    """Return a trainer of `preset` on random rows, on this machine's best device."""
    torch.manual_seed(0)
    device = pick_device()
    config = ModelConfig.preset(preset, seq_len=seq_len)
    plan = ComputePlan(
        device=str(device),
        dtype=pick_dtype("auto", device),
        micro_batch=micro_batch,
        threads=torch.get_num_threads(),
    )
    settings = TrainSettings(steps=10**9, global_batch=micro_batch, lr=1e-4, warmup_steps=1)
    rows = cast(RowStream, RandomRows(config.vocab_size, seq_len))
    return Trainer(Decoder(config), rows, settings, plan)


def train(trainer: Trainer, steps: int) -> float:
    """Return the seconds that `steps` steps take."""
    started = time.perf_counter()
    for _ in range(steps):
        trainer.train_step()
    trainer.drain_metrics()  # waits for the device
    return time.perf_counter() - started


def save_and_train(checkpointer: Checkpointer, trainer: Trainer, window: int) -> float:
    """Return the seconds that a window of steps takes with a save at its beginning."""
    state = trainer.state()
    started = time.perf_counter()
    checkpointer.save(state.model, state.optimizer, state.meta)
    seconds = time.perf_counter() - started + train(trainer, window)
    if checkpointer.busy:
        raise SystemExit("A save took longer than its window: is the machine idle?")
    return seconds


def measure(preset: str, micro_batch: int, seq_len: int, rounds: int) -> dict[str, Any]:
    """Return what a save of `preset` costs, from `rounds` windows of each kind."""
    trainer = make_trainer(preset, micro_batch, seq_len)
    train(trainer, 3)
    step = train(trainer, 3) / 3
    stalls, writes, added, ratios = [], [], [], []
    with tempfile.TemporaryDirectory(dir=Path.home()) as folder:
        claim = claim_run(RunState(FileStore(folder), "benchmark"), Owner.me())
        checkpointer = Checkpointer(
            claim, CheckpointSeries("pretrain", "benchmark", files=lambda state: {})
        )
        state = trainer.state()
        checkpointer.reserve(state.model, state.optimizer)
        train(trainer, 3)
        checkpointer.save(state.model, state.optimizer, state.meta)
        first_stall = checkpointer.stats.stall_seconds
        train(trainer, 3)
        checkpointer.wait()
        window = math.ceil(LONGER_THAN_A_SAVE * checkpointer.stats.write_seconds / step)
        for number in range(rounds):
            without = train(trainer, window) if number % 2 == 0 else 0.0
            within = save_and_train(checkpointer, trainer, window)
            stalls.append(checkpointer.stats.stall_seconds)
            writes.append(checkpointer.stats.write_seconds)
            without = without or train(trainer, window)
            added.append(within - without)
            ratios.append(within / without)
        size = checkpointer.last.bytes if checkpointer.last else 0
        checkpointer.close()
    trainer.close()
    stall, cost = statistics.median(stalls), statistics.median(added)
    quartiles = statistics.quantiles(added, n=4)
    return {
        "shape": f"{preset}, micro_batch {micro_batch} x {seq_len}",
        "bytes": size,
        "first_stall_seconds": first_stall,
        "stall_seconds": stall,
        "write_seconds": statistics.median(writes),
        "window_steps": window,
        "added_seconds_per_save": {"median": cost, "quartiles": [quartiles[0], quartiles[2]]},
        "throughput_lost_every_2_min": cost / SAVE_EVERY_SECONDS,
        "young_daly_interval_seconds": math.sqrt(2 * max(stall, 1e-3) * PREEMPTION_SECONDS),
        "windows_with_over_without": [round(ratio, 3) for ratio in ratios],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--shapes", nargs="*", default=["pion-nano:4:256", "pion-small:1:256"])
    args = parser.parse_args()
    results = []
    for shape in args.shapes:
        preset, micro_batch, seq_len = shape.split(":")
        results.append(measure(preset, int(micro_batch), int(seq_len), args.rounds))
        print(json.dumps(results[-1], indent=1), flush=True)
    device = device_name(pick_device())
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps({"device": device, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
