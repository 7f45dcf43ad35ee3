"""Train nanochat's own model with its own optimizer on the rows of a race (benchmarks/recipes.py).

The code comes from a checkout of karpathy/nanochat (MIT) that the user names; nothing of it is
here. The model has the race's d_model and n_layers, and else what `scripts/base_train.py` would
choose: heads of 128, windows SSSL, and rates from its rules for batches of this size. `factor`
multiplies all rates, because these rules were found with batches that are 256 times as large.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pion.config.model_config import ModelConfig
from pion.data.shards import IGNORED
from pion.data.stream import RowStream
from pion.data.tokens.tokenizer import Tokenizer
from pion.evaluation.held_out import HeldOut, summarize
from pipeline.data.prepared import open_data
from pipeline.job import Job

# The defaults of scripts/base_train.py, by the names of its options.
MATRIX_LR, EMBEDDING_LR, UNEMBEDDING_LR, SCALAR_LR = 0.02, 0.3, 0.008, 0.5
WEIGHT_DECAY, WARMUP_STEPS, WARMDOWN_RATIO, FINAL_LR = 0.28, 40, 0.65, 0.05
# The batch in tokens and the depth that these defaults are for.
BATCH_TOKENS, DEPTH, WIDTH_PER_LAYER = 2**19, 12, 64
HEAD_DIM = 128
MOMENTUM_STEPS, FIRST_MOMENTUM, MOMENTUM, LAST_MOMENTUM = 400, 0.85, 0.97, 0.90
# What its loss takes for a target that does not count.
IGNORED_THERE = -1
SCORED_AT_ONCE = 16  # rows


def import_nanochat(checkout: Path) -> Any:
    """Return nanochat's module of the model. Its optimizer runs as it is written, not compiled."""
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    os.environ.setdefault("NANOCHAT_DTYPE", "bfloat16")
    sys.path.insert(0, str(checkout))
    from nanochat import gpt

    return gpt


def build(gpt: Any, d_model: int, n_layers: int, vocab_size: int, seq_len: int) -> Any:
    """Return an initialized model of this shape."""
    heads = max(1, d_model // HEAD_DIM)
    config = gpt.GPTConfig(
        sequence_len=seq_len,
        vocab_size=vocab_size,
        n_layer=n_layers,
        n_head=heads,
        n_kv_head=heads,
        n_embd=d_model,
    )
    model = gpt.GPT(config)
    model.init_weights()
    return model


def macs(d_model: int, n_layers: int, vocab_size: int) -> int:
    """Return the multiply-accumulates with weights for a token, but for its gates' few."""
    return 12 * n_layers * d_model**2 + vocab_size * d_model


def counted(model: Any) -> int:
    """Return the parameters that nanochat's rules of scale count."""
    params = model.num_scaling_params()
    return int(params["transformer_matrices"] + params["lm_head"])


def optimizer_of(gpt: Any, model: Any, global_batch: int, factor: float) -> Any:
    """Return the optimizer of scripts/base_train.py for a batch of `global_batch` rows."""
    config = model.config
    tokens = global_batch * config.sequence_len
    with torch.device("meta"):
        width = DEPTH * WIDTH_PER_LAYER
        heads = width // HEAD_DIM
        reference = gpt.GPT(
            gpt.GPTConfig(config.sequence_len, config.vocab_size, DEPTH, heads, heads, width)
        )
    root = math.sqrt(tokens / BATCH_TOKENS)
    rate = root * factor
    return model.setup_optimizer(
        unembedding_lr=UNEMBEDDING_LR * rate,
        embedding_lr=EMBEDDING_LR * rate,
        matrix_lr=MATRIX_LR * rate,
        scalar_lr=SCALAR_LR * rate,
        weight_decay=WEIGHT_DECAY * root * counted(reference) / counted(model) / factor,
    )


def share_of_rate(step: int, steps: int) -> float:
    """Return the factor of all rates in a step."""
    down = round(WARMDOWN_RATIO * steps)
    warmup = min(WARMUP_STEPS, steps // 4)
    if step < warmup:
        return (step + 1) / warmup
    if step <= steps - down:
        return 1.0
    left = (steps - step) / down
    return left + (1 - left) * FINAL_LR


def momentum_at(step: int, steps: int) -> float:
    """Return Muon's momentum in a step."""
    down = round(WARMDOWN_RATIO * steps)
    if step < MOMENTUM_STEPS:
        return FIRST_MOMENTUM + (MOMENTUM - FIRST_MOMENTUM) * step / MOMENTUM_STEPS
    if step < steps - down:
        return MOMENTUM
    return MOMENTUM + (LAST_MOMENTUM - MOMENTUM) * (step - steps + down) / down


def train(
    job: Job, config: ModelConfig, seed: int, data: Path, checkout: Path, factor: float
) -> dict[str, Any]:
    """Train on the rows of the job's race with all rates times `factor`; return the measures."""
    assert job.pretrain is not None
    opened = open_data(data)
    rows = opened.stream("train", seed=seed, window=job.data.window, documents=False)
    steps, global_batch = job.pretrain.total_steps, job.pretrain.global_batch
    gpt = import_nanochat(checkout)
    torch.manual_seed(seed)
    model = build(gpt, config.d_model, config.n_layers, config.vocab_size, config.seq_len)
    optimizer = optimizer_of(gpt, model, global_batch, factor)
    decay = next(g["weight_decay"] for g in optimizer.param_groups if g["kind"] == "muon")
    for step in range(steps):
        batch = rows.batch(range(step * global_batch, (step + 1) * global_batch))
        model(batch.tokens, _known(batch.targets)).backward()
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share_of_rate(step, steps)
            if group["kind"] == "muon":
                group["momentum"] = momentum_at(step, steps)
                group["weight_decay"] = decay * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.step()
        model.zero_grad(set_to_none=True)
    held_out = opened.stream("held_out", seed=seed, window=job.data.window, documents=False)
    found = score(model, held_out, job.evaluate.final_rows, opened.tokenizer_path)
    return {"bits_per_byte": found.bits_per_byte, "bits_per_byte_sem": found.bits_per_byte_sem}


def _known(targets: Tensor) -> Tensor:
    return targets.masked_fill(targets == IGNORED, IGNORED_THERE)


@torch.inference_mode()
def score(model: Any, rows: RowStream, count: int, tokenizer_file: Path) -> HeldOut:
    """Return how well the model predicts the first `count` rows, or all, as the evaluate stage
    counts."""
    count = min(count, rows.total_rows)
    tokenizer = Tokenizer.from_file(tokenizer_file)
    nll, targets = [], []
    for start in range(0, count, SCORED_AT_ONCE):
        batch = rows.batch(range(start, min(count, start + SCORED_AT_ONCE)))
        losses = model(batch.tokens, _known(batch.targets), loss_reduction="none")
        nll.append(losses.float().view(batch.targets.shape).numpy())
        targets.append(batch.targets.numpy())
    documents = rows.document_numbers(range(count), tokenizer.end_of_text)
    return summarize(
        np.concatenate(nll), np.concatenate(targets), tokenizer.token_bytes(), documents
    )
