"""Train a dense Pion, one step for each line on standard input, and print the seconds of the step.

    PYTHONPATH=CHECKOUT python benchmarks/step_on_demand.py float32|bfloat16 adamw|muon

A part of benchmarks/unchanged.py. It runs with `pion` from any checkout since 0afbd30, so it uses
only what all of these have. The first line of output is the path of the package, and each line
after it is JSON: the seconds and the loss of a step.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

import pion
from pion.data.stream import Batch
from pion.model.decoder import Decoder
from pion.train import settings, trainer

try:
    from pion.config.model_config import ModelConfig
except ImportError:  # a commit before 0.1.0
    from pion.config import ModelConfig  # type: ignore[no-redef, attr-defined]

# `ComputePlan` was called `Plan` before.
Plan: Any = getattr(settings, "ComputePlan", None) or vars(settings)["Plan"]
PRESET, ROWS, SEQ_LEN, THREADS = "pion-nano", 4, 256, 2


class RandomRows:
    """Endless rows of random ids, the same in every process."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def batch(self, indices: Any) -> Batch:
        rows = []
        for index in indices:
            own = torch.Generator().manual_seed(int(index))
            rows.append(torch.randint(0, self._vocab_size, (SEQ_LEN,), generator=own))
        tokens = torch.stack(rows)
        return Batch(tokens, tokens.roll(-1, dims=1), None, None)


def main() -> None:
    arguments: list[Any] = sys.argv[1:]
    dtype, optimizer = arguments
    torch.manual_seed(0)
    config = ModelConfig.preset(PRESET)
    plan = Plan(device="cpu", dtype=dtype, micro_batch=ROWS, threads=THREADS)
    stage = settings.TrainSettings(
        steps=10**9, global_batch=ROWS, lr=3e-4, warmup_steps=1, optimizer=optimizer
    )
    rows: Any = RandomRows(config.vocab_size)
    trained = trainer.Trainer(Decoder(config), rows, stage, plan)
    print(pion.__file__, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        trained.train_step()
        (metrics,) = trained.drain_metrics()
        seconds = time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "loss": metrics["loss"]}), flush=True)
    trained.close()


if __name__ == "__main__":
    main()
