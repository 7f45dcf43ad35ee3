"""The largest number of each field of a job. A larger number is a mistake, or meant to do harm.

`load_job` applies the bounds, when work is about to be claimed. A job that a run recorded is read
without them. The least numbers are declared with the fields (fields.py).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from pipeline.job import Job, Section
from pipeline.job.mistakes import Document, Mistake, join, shown

STEPS = 10**9
BATCH = 10**6
SEQ_LEN = 2**20
WIDTH = 65_536
LAYERS = 1024
VOCABULARY = 2**20
ROWS = 10**8
# Of a learning rate, a limit or another factor.
FACTOR = 10**6
# Three years.
SECONDS = 10**8
HOURS = 30_000
DOLLARS = 10**9

_TRAIN = {
    "steps": STEPS,
    "global_batch": BATCH,
    "lr": FACTOR,
    "min_lr": FACTOR,
    "warmup_steps": STEPS,
    "decay_fraction": 1,
    "muon_lr": FACTOR,
    "muon_momentum": 1,
    "muon_momentum_start": 1,
    "embedding_lr": FACTOR,
    "head_lr": FACTOR,
    "vector_lr": FACTOR,
    "weight_decay": FACTOR,
    "primitive_weight_decay": FACTOR,
    "phases.until": STEPS,
    "phases.rates": FACTOR,
    "phases.top_k": 4096,
    "phases.rank": WIDTH,
    "phases.unfreeze": LAYERS,
    "beta1": 1,
    "beta2": 1,
    "eps": FACTOR,
    "clip": 10**9,
    "max_spike": 10**9,
}

# By dotted path, without the numbers of list items. The bound of a list is that of each item.
BOUNDS: dict[str, float] = {
    "seed": 2**63 - 1,
    "prices": FACTOR,
    "model.d_model": WIDTH,
    "model.n_layers": LAYERS,
    "model.n_heads": WIDTH,
    "model.n_kv_heads": WIDTH,
    "model.d_ff": WIDTH,
    "model.head_dim": WIDTH,
    "model.vocab_size": VOCABULARY,
    "model.seq_len": SEQ_LEN,
    "model.rope_theta": 10**12,
    "model.softcap": FACTOR,
    "model.experts.n": 4096,
    "model.experts.top_k": 4096,
    "model.experts.shared": 4096,
    "model.experts.d_shared": WIDTH,
    "model.experts.balance_weight": FACTOR,
    "model.experts.z_weight": FACTOR,
    "model.windows.tokens": SEQ_LEN,
    "model.windows.block": SEQ_LEN,
    "model.windows.long_every": LAYERS,
    "model.heads.scale": FACTOR,
    "model.wiring.attention_layers": LAYERS,
    "model.wiring.skips": LAYERS,
    "model.values.layers": LAYERS,
    "model.values.tables": LAYERS,
    "model.primitives.n": 4096,
    "model.primitives.rank": WIDTH,
    "model.primitives.top_k": 4096,
    "model.primitives.bands": LAYERS,
    "model.primitives.activation_bits": 16,
    "model.primitives.diversity_weight": FACTOR,
    "model.rope_scaling.factor": FACTOR,
    "model.rope_scaling.original_max_position_embeddings": SEQ_LEN,
    "model.rope_scaling.low_freq_factor": FACTOR,
    "model.rope_scaling.high_freq_factor": FACTOR,
    "model.norm_eps": FACTOR,
    "model.logit_cap": FACTOR,
    "tokenizer.train.vocab_size": VOCABULARY,
    "tokenizer.train.max_mb": FACTOR,
    "data.seq_len": SEQ_LEN,
    "data.held_out": 1,
    "data.shard_rows": ROWS,
    "data.window": 10**6,
    "data.max_line_mb": 2000,
    "data.sources.weight": 10**9,
    "data.sources.max_documents": 10**12,
    "data.sources.max_shards": 10**6,
    **{f"pretrain.{name}": most for name, most in _TRAIN.items()},
    **{f"sft.{name}": most for name, most in _TRAIN.items()},
    "sft.sources.weight": 10**9,
    "sft.sources.max_documents": 10**12,
    "sft.epochs": 10_000,
    "sft.held_out": 1,
    "sft.seq_len": SEQ_LEN,
    "sft.lora.rank": WIDTH,
    "sft.lora.alpha": FACTOR,
    "sft.lora.dropout": 1,
    "evaluate.every": STEPS,
    "evaluate.rows": ROWS,
    "evaluate.final_rows": ROWS,
    "evaluate.ngram_order": 6,
    "evaluate.ngram_tokens": 10**9,
    "evaluate.continuations": 10**6,
    "evaluate.lm_eval.limit": 10**9,
    "checkpoint.every_steps": STEPS,
    "checkpoint.every_seconds": SECONDS,
    "checkpoint.preemption_hours": HOURS,
    "checkpoint.keep.last": 10_000,
    "checkpoint.keep.every": STEPS,
    "checkpoint.grace": SECONDS,
    "checkpoint.max_undurable": SECONDS,
    "checkpoint.linger": SECONDS,
    "checkpoint.max_rewinds": 10**6,
    "hardware.workers": 4096,
    "hardware.micro_batch": BATCH,
    "hardware.threads": 4096,
    "hardware.hang_seconds": SECONDS,
    "hardware.shard_cache_gb": FACTOR,
    "budget.hours": 10**7,
    "budget.dollars": DOLLARS,
    "budget.dollars_per_hour": FACTOR,
    "budget.price_tolerance": FACTOR,
    "deadline.hours": HOURS,
    "deadline.margin": SECONDS,
    "log.every": STEPS,
}


def beyond_bounds(job: Job, document: Document) -> list[Mistake]:
    """Return a mistake for each number of the job that exceeds its bound, in the file's order."""
    mistakes = []
    for path, number in _numbers(job, ""):
        keys = [key for key in path.split(".") if not key.isdecimal()]
        # A test compares the table with the schema. No missing bound may end a run.
        most = BOUNDS.get(_bounded(keys), math.inf)
        if abs(number) > most:
            limit = f"at most {most:,}" if number > 0 else f"at least {-most:,}"
            text = f"{shown(number)} should be {limit}"
            mistakes.append(Mistake(document.where(path), path, text))
    return sorted(mistakes, key=lambda mistake: mistake.order)


def _bounded(keys: list[str]) -> str:
    """Return the path of a number's bound: all prices have one, and all factors of a phase."""
    if keys[0] == "prices":
        return "prices"
    return ".".join(keys[:3] if keys[1:3] == ["phases", "rates"] else keys)


def _numbers(value: Any, path: str) -> Iterator[tuple[str, int | float]]:
    """Yield every number below `value`, which is at a dotted path of the job, with its own path."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _numbers(item, join(path, str(number)))
    elif isinstance(value, Section):
        for name in type(value).model_fields:
            yield from _numbers(getattr(value, name), join(path, name))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _numbers(item, join(path, str(name)))
    elif dataclasses.is_dataclass(value):
        for name, item in vars(value).items():
            yield from _numbers(item, join(path, name))
