"""Compare what the models learn: the loss at the end of a short training, with transformers' Qwen3.

Both start from the same weights and train on the same rows with the same optimizer, in fp32 and in
bf16: the demo's shape, on the prose of Python's standard library. So speed is not bought with a
worse loss. A seed decides the weights and the rows. The result is the difference of the means over
seeds. Training is chaotic: with one seed the two may be further apart, even in fp32, where both
compute the same function. The quartiles are of these differences.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from benchmarks.comparison import Comparison, at_most, quartiles
from benchmarks.trainees import TINY, Shape, Trainee, pion, qwen3, stepper, targets_of
from pion.config.model_config import ModelConfig
from pion.data.documents.python_docs import documents
from pion.data.tokens.tokenizer import Tokenizer, train_bpe

STEPS, LAST, SEEDS = 120, 20, 3
QUICK_STEPS, QUICK_LAST, QUICK_SEEDS = 4, 2, 2
LR = 1e-3
VOCAB_SIZE = 2048
# The shape and the batch of benchmarks/demo_muon.yaml.
DEMO = Shape(
    ModelConfig(
        d_model=256,
        n_layers=6,
        n_heads=4,
        n_kv_heads=2,
        d_ff=704,
        vocab_size=VOCAB_SIZE,
        seq_len=256,
    ),
    batch=8,
    seq_len=256,
)


def run(quick: bool) -> Iterator[Comparison]:
    """Yield the comparison."""
    shape = TINY if quick else DEMO
    steps, last, seeds = (QUICK_STEPS, QUICK_LAST, QUICK_SEEDS) if quick else (STEPS, LAST, SEEDS)
    rows = random_text(shape) if quick else text_rows(shape)
    for precision in ("fp32", "bf16"):
        bf16 = precision == "bf16"
        ours: list[float] = []
        theirs: list[float] = []
        for seed in range(seeds):
            order = np.random.default_rng(seed).permutation(len(rows))[: steps * shape.batch]
            batches = torch.from_numpy(rows[order]).view(steps, shape.batch, shape.seq_len)
            sides = pion(shape.config, seed=seed), qwen3(shape.config, seed=seed)
            for losses, trainee in zip((ours, theirs), sides, strict=True):
                losses.append(mean_of_last(trainee, batches, last, bf16=bf16))
        differences = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
        yield Comparison(
            f"loss, mean of the last {last} of {steps} steps, {precision}",
            "transformers Qwen3, nats apart",
            "nats",
            ours=statistics.mean(ours),
            theirs=statistics.mean(theirs),
            result=abs(statistics.mean(ours) - statistics.mean(theirs)),
            quartiles=quartiles(differences),
            rounds=seeds,
            target=at_most(0.02),
            details={"ours by seed": ours, "theirs by seed": theirs},
        )


def mean_of_last(trainee: Trainee, batches: Tensor, last: int, *, bf16: bool) -> float:
    """Train a step on each batch, and return the mean loss of the last steps."""
    step = stepper(trainee, bf16=bf16, lr=LR)
    losses = [step(tokens, targets_of(tokens)) for tokens in batches]
    return round(statistics.mean(losses[-last:]), 5)


def text_rows(shape: Shape) -> np.ndarray:
    """Return rows of prose, int64 (rows, seq_len), in a tokenizer trained on it."""
    texts = [document.text for document in documents()]
    tokenizer = train_bpe(texts, VOCAB_SIZE)
    return joined(tokenizer, texts, shape.seq_len)


def joined(tokenizer: Tokenizer, texts: list[str], seq_len: int) -> np.ndarray:
    """Return the texts, each after an end-of-text, cut into rows."""
    encoded = tokenizer.encode_batch(texts)
    ids = np.fromiter(chain.from_iterable([tokenizer.end_of_text, *ids] for ids in encoded), int)
    return ids[: len(ids) // seq_len * seq_len].reshape(-1, seq_len)


def random_text(shape: Shape) -> np.ndarray:
    """Return rows of random ids."""
    size = (QUICK_STEPS * shape.batch, shape.seq_len)
    return np.random.default_rng(0).integers(0, shape.config.vocab_size, size=size)
