"""Race `optimizer: adamw8bit` against `adamw`: the held-out loss after a short training on a CPU.

    uv run python -m benchmarks.eight_bit [--quick]

Both start from the same weights and train on the same rows at the same rates: prose of Python's
standard library, in a model of 1.0M parameters. A seed decides the weights and the rows. The result
is the mean difference over seeds and its standard error. The third side is `adamw` from weights
that differ by a hundredth: how far a small disturbance sets two runs apart. Writes
benchmarks/results/eight_bit.json, except with --quick.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.same_loss import text_rows
from benchmarks.trainees import Shape, decoder_of, targets_of
from pion.config.model_config import ModelConfig
from pion.train.optimizer.optimizer import Optimizer
from pion.train.schedule import plan_at
from pion.train.settings import TrainSettings

RESULT = Path(__file__).parent / "results" / "eight_bit.json"
SHAPE = Shape(
    ModelConfig(
        d_model=128, n_layers=4, n_heads=4, n_kv_heads=2, d_ff=352, vocab_size=2048, seq_len=128
    ),
    batch=8,
    seq_len=128,
)
STEPS, SEEDS, HELD_OUT, LR, NUDGE = 300, 6, 256, 3e-3, 1e-2
SIDES = {"adamw": "adamw", "adamw8bit": "adamw8bit", "adamw, nudged": "adamw"}


def main() -> None:
    """Train all sides with all seeds, print the differences, and keep them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a few steps; writes nothing")
    quick = parser.parse_args().quick
    steps, seeds = (4, 2) if quick else (STEPS, SEEDS)
    torch.set_num_threads(1)
    rows = text_rows(SHAPE)
    losses: dict[str, list[float]] = {side: [] for side in SIDES}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(rows))
        drawn = torch.from_numpy(rows[order[: HELD_OUT + steps * SHAPE.batch]])
        for side in SIDES:
            losses[side].append(held_out_loss(side, seed, drawn[:HELD_OUT], drawn[HELD_OUT:]))
            print(seed, side, losses[side][-1], flush=True)
    result = {"steps": steps, "losses": losses, "differences": differences(losses)}
    print(json.dumps(result["differences"], indent=1))
    if not quick:
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


def held_out_loss(side: str, seed: int, held_out: Tensor, rows: Tensor) -> float:
    """Train a step on each batch of rows; return the mean loss of a token in `held_out`."""
    model = decoder_of(SHAPE.config, seed)
    if "nudged" in side:
        for param in model.parameters():
            param.data.mul_(1 + NUDGE * torch.randn_like(param))
    batches = rows.view(-1, SHAPE.batch, SHAPE.seq_len)
    settings = TrainSettings(
        len(batches), SHAPE.batch, LR, warmup_steps=len(batches) // 10, optimizer=SIDES[side]
    )
    optimizer = Optimizer(model, settings)
    for step, batch in enumerate(batches):
        model.loss(batch, targets_of(batch)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step(plan_at(settings, step))
        optimizer.zero_grad()
    with torch.no_grad():
        return statistics.fmean(
            model.loss(part, targets_of(part)).item() for part in held_out.split(32)
        )


def differences(losses: dict[str, list[float]]) -> dict[str, Any]:
    """Return the mean difference from adamw of each other side, and its standard error."""
    found = {}
    for side, ours in losses.items():
        if side != "adamw":
            pairs = [a - b for a, b in zip(ours, losses["adamw"], strict=True)]
            error = statistics.stdev(pairs) / math.sqrt(len(pairs))
            found[side] = {"mean": round(statistics.fmean(pairs), 5), "error": round(error, 5)}
    return found


if __name__ == "__main__":
    main()
