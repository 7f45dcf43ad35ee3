"""What slots buy and cost: bits per byte at equal tokens and equal FLOPs, and decoding long texts.

`quality` trains a small model on the source files of Python's standard library, which are long, in
rows of 512 tokens, with five seeds for each arm: attention to everything, a window of 64 tokens
alone, a window with slots, and with as many slots that see only themselves, which cost the same and
keep nothing. Arms of one seed see the same rows. The arms `…, FLOPs` have as many steps as the
FLOPs of the window alone allow. Finished trainings are kept in the result.

`decoding` measures the cache's bytes and the tokens per second at the end of texts of 4,096, 16,384
and 65,536 tokens, with random weights, by turns.

    python -m benchmarks.slots quality TOKENIZER.json [--steps N] [--seeds N]
    python -m benchmarks.slots decoding
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.recall import blinded
from pion.config.model_config import ModelConfig
from pion.data.documents.python_docs import is_held_out, source_files
from pion.data.tokens.tokenizer import Tokenizer
from pion.model.attention.cache import KVCache
from pion.model.decoder import Decoder
from pion.model.params_and_flops import flops_per_token
from pion.train.optimizer.optimizer import Optimizer
from pion.train.schedule import plan_at
from pion.train.settings import TrainSettings

RESULTS = Path(__file__).parent / "results"
TOKENS, SEGMENT, WINDOW, PER_SEGMENT, ROWS = 512, 32, 2, 4, 4
ARMS = ("full", "window", "slots", "blind", "slots, FLOPs", "full, FLOPs")
HELD_OUT = 0.05  # as in jobs/demo.yaml
SMALL: dict[str, Any] = {"d_model": 128, "n_layers": 4, "n_heads": 2, "n_kv_heads": 2, "d_ff": 352}
DEMO: dict[str, Any] = {"d_model": 256, "n_layers": 6, "n_heads": 4, "n_kv_heads": 2, "d_ff": 704}


def config_of(
    arm: str, sizes: dict[str, Any], vocab_size: int, seq_len: int, segment: int = SEGMENT
) -> ModelConfig:
    """Return the model of an arm."""
    parts: dict[str, Any] = {}
    if arm == "window":
        parts["windows"] = {"tokens": WINDOW * segment, "block": segment, "long_every": 1}
    elif not arm.startswith("full"):
        parts["slots"] = {"per_segment": PER_SEGMENT, "segment": segment, "window": WINDOW}
    return ModelConfig(**sizes, vocab_size=vocab_size, seq_len=seq_len, **parts)


def small(arm: str, vocab_size: int) -> ModelConfig:
    """Return the model of an arm of `quality`."""
    return config_of(arm, SMALL, vocab_size, TOKENS)


# ---------------------------------------------------------------- quality


def rows_of_text(tokenizer: Tokenizer, *, held_out: bool) -> Tensor:
    """Return the text as rows (N, TOKENS + 1), in which each document begins with its end."""
    ids: list[int] = []
    for source in source_files():
        if is_held_out(source.origin, HELD_OUT) == held_out:
            ids += [tokenizer.end_of_text, *tokenizer.encode(source.text)]
    count = (len(ids) - 1) // TOKENS
    starts = np.arange(count)[:, None] * TOKENS + np.arange(TOKENS + 1)
    return torch.from_numpy(np.array(ids)[starts])


def trained(arm: str, seed: int, steps: int, rows: Tensor, vocab_size: int) -> Decoder:
    """Return a model that was trained on rows in an order that the seed decides."""
    torch.manual_seed(seed)
    model = Decoder(small(arm, vocab_size))
    settings = TrainSettings(
        steps=steps,
        global_batch=ROWS,
        lr=5e-3,
        min_lr=1e-4,
        warmup_steps=10,
        optimizer="muon",
        decay_shape="linear",
        decay_fraction=0.6,
    )
    optimizer = Optimizer(model, settings)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    for step in range(steps):
        batch = rows[order[[(step * ROWS + n) % len(rows) for n in range(ROWS)]]]
        model.loss(batch[:, :-1], batch[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(plan_at(settings, step))
        optimizer.zero_grad()
    return model


@torch.no_grad()
def nats_of(model: Decoder, rows: Tensor) -> list[float]:
    """Return the loss of each row, summed over its tokens."""
    return [model.loss(row[None, :-1], row[None, 1:], reduction="sum").item() for row in rows]


def quality(tokenizer: Tokenizer, steps: int, seeds: int) -> None:
    """Train what is missing in benchmarks/results/slots_quality.json."""
    out = RESULTS / "slots_quality.json"
    size = tokenizer.vocab_size
    known: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    if known.get("steps") != steps:
        known = {"steps": steps, "nats": {}}
    train, held_out = (rows_of_text(tokenizer, held_out=side) for side in (False, True))
    sizes = torch.from_numpy(tokenizer.token_bytes())[held_out[:, 1:]].sum(dim=1).tolist()
    flops = {arm: flops_per_token(small(arm, size), TOKENS) for arm in ARMS}
    known |= {"bytes": sizes, "flops_per_token": flops, "training_rows": len(train)}
    for seed in range(seeds):
        for arm in ARMS:
            key = f"{arm} {seed}"
            if key in known["nats"]:
                continue
            count = round(steps * flops["window"] / flops[arm]) if "FLOPs" in arm else steps
            begun = time.perf_counter()
            with blinded(arm):
                model = trained(arm, seed, count, train, size)
                known["nats"][key] = nats_of(model, held_out)
            print(f"{key}: {bits(known, key):.4f}, {time.perf_counter() - begun:.0f} s", flush=True)
            known["summary"] = summary(known, seed + 1)
            out.write_text(json.dumps(known, indent=1) + "\n")


def bits(known: dict[str, Any], key: str) -> float:
    return sum(known["nats"][key]) / math.log(2) / sum(known["bytes"])


def summary(known: dict[str, Any], seeds: int) -> dict[str, Any]:
    """Return the mean bits per byte of each arm, and its difference from the window alone.

    The standard errors are over seeds.
    """
    found = {}
    for arm in ARMS:
        whole = [s for s in range(seeds) if {f"{arm} {s}", f"window {s}"} <= known["nats"].keys()]
        if not whole:
            continue
        values = [bits(known, f"{arm} {seed}") for seed in whole]
        apart = [value - bits(known, f"window {seed}") for value, seed in zip(values, whole)]
        found[arm] = {
            "bits_per_byte": fmean(values),
            "minus_window": fmean(apart),
            "sem": stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else None,
        }
    return found


# ---------------------------------------------------------------- decoding

LENGTHS = (4096, 16_384, 65_536)
LONG_SEGMENT = 64
STEPS, TURNS = 16, 5


@torch.inference_mode()
def step_seconds(model: Decoder, cache: KVCache, length: int) -> float:
    """Return the seconds of a step behind so many tokens, the mean of several."""
    token = torch.ones(1, 1, dtype=torch.int64)
    cache.cut(0, length)
    begun = time.perf_counter()
    for _ in range(STEPS):
        model.logits(model.hidden(token, cache=cache))
    return (time.perf_counter() - begun) / STEPS


@torch.inference_mode()
def filled(model: Decoder, length: int) -> KVCache:
    """Return a cache with a text of so many random tokens."""
    cache = KVCache(model.config, length + 2 * STEPS, rows=1)
    tokens = torch.randint(2, model.config.vocab_size, (1, length))
    for piece in tokens.split(256, dim=1):
        model.hidden(piece, cache=cache)
    return cache


def decoding() -> Iterator[dict[str, Any]]:
    """Yield what a step takes behind texts of each length, in every arm."""
    for length in LENGTHS:
        models = {
            arm: Decoder(config_of(arm, DEMO, 2048, length + 64, LONG_SEGMENT)).joined()
            for arm in ("full", "window", "slots")
        }
        caches = {arm: filled(model, length) for arm, model in models.items()}
        times: dict[str, list[float]] = {arm: [] for arm in models}
        for _ in range(TURNS):
            for arm, model in models.items():
                times[arm].append(step_seconds(model, caches[arm], length))
        yield {
            "tokens": length,
            "megabytes": {arm: cache.bytes_per_row() / 1e6 for arm, cache in caches.items()},
            "tokens_per_second": {arm: 1 / median(taken) for arm, taken in times.items()},
        }


def main() -> None:
    """Measure one of both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("quality", "decoding"))
    parser.add_argument("tokenizer", type=Path, nargs="?")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.what == "quality":
        quality(Tokenizer.from_file(args.tokenizer), args.steps, args.seeds)
        return
    found = []
    for row in decoding():
        found.append(row)
        print(json.dumps(row), flush=True)
        (RESULTS / "slots_decoding.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
