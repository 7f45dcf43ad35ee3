"""Train the models of a comparison on the same rows, and pair their results.

For each seed, all models see the same rows in the same order, each in its own process. Then
held-out text is scored as in the evaluate stage, in fp32. A difference from another model is the
mean over seeds of paired differences.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.memory import resident
from pion.config.model_config import ModelConfig
from pion.data.stream import RowStream
from pion.data.tokens.tokenizer import Tokenizer
from pion.evaluation.held_out import HeldOut, Scorer, held_out
from pion.model.decoder import Decoder
from pion.train.settings import ComputePlan
from pion.train.trainer import Trainer
from pipeline.data.prepared import PreparedData, open_data
from pipeline.job import Job
from pipeline.job.train_sections import settings_of

Dtype = Literal["float32", "bfloat16"]
REAL = 2.8  # |t| of a difference, for five seeds: p < 0.05
WARMUP_STEPS = 5  # not timed
SCORED_AT_ONCE = 16  # rows


def train(
    job: Job,
    config: ModelConfig,
    seed: int,
    data: Path,
    dtype: Dtype,
    residual: Dtype = "float32",
) -> dict[str, Any]:
    """Train a job's model of the shape `config` on the prepared `data`; return its measures."""
    before = resident("VmRSS")
    opened = open_data(data)
    trainer = trainer_of(job, config, seed, opened, dtype, residual)
    speeds = []
    for _ in range(trainer.settings.steps):
        trainer.train_step()
        speeds.append(trainer.drain_metrics()[-1]["tokens_per_second"])
    peak = resident("VmHWM") - before
    trainer.close()
    rows = rows_of(job, seed, opened, "held_out")
    scored = score(trainer.model, rows, job.evaluate.final_rows, opened.tokenizer_path)
    return {
        "bits_per_byte": scored.bits_per_byte,
        "bits_per_byte_sem": scored.bits_per_byte_sem,
        "tokens_per_second": statistics.median(speeds[WARMUP_STEPS:]),
        "peak_mib": peak / 2**20,
    }


def trainer_of(
    job: Job,
    config: ModelConfig,
    seed: int,
    opened: PreparedData,
    dtype: Dtype,
    residual: Dtype = "float32",
) -> Trainer:
    """Return the trainer of a job's model of the shape `config`, before its first step."""
    assert job.pretrain is not None
    settings = settings_of(job.pretrain)
    torch.manual_seed(seed)
    plan = ComputePlan(
        dtype=dtype,
        micro_batch=settings.global_batch,
        threads=torch.get_num_threads(),
        residual=residual,
    )
    return Trainer(Decoder(config), rows_of(job, seed, opened, "train"), settings, plan)


def rows_of(job: Job, seed: int, opened: PreparedData, split: str) -> RowStream:
    """Return the rows of a split of prepared data, as a run of the job with this seed sees them."""
    window, documents = job.data.window, job.within_documents
    return opened.stream(split, seed=seed, window=window, documents=documents)


def score(model: Decoder, rows: RowStream, count: int, tokenizer_file: Path) -> HeldOut:
    """Return how well `model` predicts the first `count` held-out rows, or all, in fp32."""
    count = min(count, rows.total_rows)
    tokenizer = Tokenizer.from_file(tokenizer_file)
    scorer = Scorer(model.eval(), tokenizer.vocab_size, SCORED_AT_ONCE)
    with torch.inference_mode():
        return held_out(scorer, rows, range(count), tokenizer.token_bytes(), tokenizer.end_of_text)


def paired(these: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Return the mean of the paired differences, its t, and whether it counts as real."""
    differences = [a - b for a, b in zip(these, others, strict=True)]
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    t = mean / error if error else math.copysign(math.inf, mean)
    return {"difference": round(mean, 4), "t": round(t, 1), "real": abs(t) > REAL}
