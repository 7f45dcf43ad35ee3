"""Do slots remember? A value is asked for after its key has left attention's window.

A row is noise in which a few tokens stand for pairs (key, value). In later segments, beyond the
window, a key is asked for, and the answer is its value. Only the answers are learned. A model with
a window alone can't know them: it is right once in 8 times. Compared are attention to everything,
the window alone, slots, and slots that see only themselves, which cost the same and keep nothing.

    python -m benchmarks.recall [--steps N] [--seeds N] [--arms full slots …]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from pion.config.model_config import ModelConfig
from pion.model.attention import slot_masks
from pion.model.attention.slot_entries import Entries, visible
from pion.model.decoder import Decoder
from pion.train.optimizer.optimizer import Optimizer
from pion.train.schedule import plan_at
from pion.train.settings import TrainSettings

RESULTS = Path(__file__).parent / "results" / "recall.json"
ARMS = ("full", "window", "slots", "blind")
KEYS, VALUES, NOISE = 8, 8, 16
QUERY = KEYS * VALUES
VALUE = QUERY + KEYS
VOCAB = VALUE + VALUES + NOISE
TOKENS, SEGMENT, WINDOW, PER_SEGMENT, PAIRS = 96, 8, 1, 2, 2
ROWS, TESTED = 64, 1024


def config_of(arm: str) -> ModelConfig:
    """Return the model of an arm."""
    parts: dict[str, Any] = {}
    if arm == "window":
        parts["windows"] = {"tokens": WINDOW * SEGMENT, "block": SEGMENT, "long_every": 1}
    elif arm != "full":
        parts["slots"] = {"per_segment": PER_SEGMENT, "segment": SEGMENT, "window": WINDOW}
    return ModelConfig(
        d_model=64,
        n_layers=3,
        n_heads=4,
        n_kv_heads=4,
        d_ff=192,
        vocab_size=VOCAB,
        seq_len=TOKENS,
        **parts,
    )


@contextmanager
def blinded(arm: str) -> Iterator[None]:
    """Let slots see only themselves, in the arm of that name."""

    def alone(query: Entries, key: Entries, window: int) -> Tensor:
        seen = visible(query, key, window)
        of_slot = query.segment < 0
        own = torch.eye(query.order.shape[1], dtype=torch.bool)
        return torch.where(of_slot[:, None, :, None], own, seen)

    with mock.patch.object(slot_masks, "visible", alone if arm == "blind" else visible):
        yield


def rows_of(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return rows and their targets, (count, TOKENS): pairs in the first half, queries later."""
    tokens = torch.randint(VALUE + VALUES, VOCAB, (count, TOKENS), generator=draw)
    targets = torch.full_like(tokens, -100)
    row = torch.arange(count)[:, None]
    half = TOKENS // 2
    keys = torch.rand(count, KEYS, generator=draw).argsort(1)[:, :PAIRS]
    values = torch.randint(0, VALUES, (count, PAIRS), generator=draw)
    places = torch.rand(count, half, generator=draw).argsort(1)[:, :PAIRS]
    tokens[row, places] = keys * VALUES + values
    first = half + WINDOW * SEGMENT  # from here, no pair is in the window
    for place in range(first, TOKENS - 1, SEGMENT // 2):
        asked = torch.randint(0, PAIRS, (count, 1), generator=draw)
        tokens[row, place] = QUERY + keys.gather(1, asked)
        answer = VALUE + values.gather(1, asked)
        targets[row, place] = answer
        tokens[row, place + 1] = answer
    return tokens, targets


def accuracy(model: Decoder) -> float:
    """Return the share of right answers to each row's first question.

    Later ones may have been answered before, within the window.
    """
    tokens, targets = rows_of(TESTED, torch.Generator().manual_seed(7))
    place = TOKENS // 2 + WINDOW * SEGMENT
    with torch.no_grad():
        likeliest = model(tokens)[:, place].argmax(dim=-1)
    return (likeliest == targets[:, place]).float().mean().item()


def trained(arm: str, seed: int, steps: int) -> list[tuple[int, float]]:
    """Train a model; return its accuracy after each tenth of the steps."""
    torch.manual_seed(seed)
    model = Decoder(config_of(arm))
    settings = TrainSettings(
        steps=steps,
        global_batch=ROWS,
        lr=3e-3,
        min_lr=3e-4,
        warmup_steps=50,
        optimizer="muon",
        weight_decay=0.01,
    )
    optimizer = Optimizer(model, settings)
    draw = torch.Generator().manual_seed(1000 + seed)
    found = []
    with blinded(arm):
        for step in range(steps):
            model.loss(*rows_of(ROWS, draw)).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step(plan_at(settings, step))
            optimizer.zero_grad()
            if (step + 1) % max(1, steps // 10) == 0:
                found.append((step + 1, accuracy(model)))
                print(f"{arm} seed {seed} step {found[-1][0]}: {found[-1][1]:.3f}", flush=True)
    return found


def summary(runs: Sequence[Sequence[tuple[int, float]]]) -> dict[str, Any]:
    """Return the mean accuracy at the end, with its standard error over seeds, and all runs."""
    last = [run[-1][1] for run in runs]
    error = stdev(last) / math.sqrt(len(last)) if len(last) > 1 else None
    return {"accuracy": fmean(last), "accuracy_sem": error, "runs": [list(run) for run in runs]}


def main() -> None:
    """Run the arms, and write benchmarks/results/recall.json after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "steps": args.steps,
        "chance": 1 / VALUES,
        "tokens": TOKENS,
        "segment": SEGMENT,
        "window": WINDOW,
        "per_segment": PER_SEGMENT,
        "pairs": PAIRS,
        "arms": {},
    }
    for arm in args.arms:
        runs = [trained(arm, seed, args.steps) for seed in range(args.seeds)]
        found["arms"][arm] = summary(runs)
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
