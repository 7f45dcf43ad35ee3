"""The batch and the rates of a run that is larger or longer than its job says, by rule.

The job's own batch and rates are taken to be good for its own size and length. From there,

    batch ∝ tokens^0.383 (Bergsma et al. 2025, arXiv 2505.13738, and nanochat's settings),
    all rates ∝ √batch, but at most twice or half as large, and AdamW's rates also ∝ d_model^-½.
"""

from __future__ import annotations

import math

from pipeline.job import Job

BATCH_POWER = 0.383
# A batch is rounded to so many significant binary digits, so that it splits into equal parts.
_DIGITS = 3
# Those of AdamW, and that of Muon.
_ADAMW = ("lr", "min_lr", "embedding_lr", "head_lr", "vector_lr")
# By how much a batch changes the rates at most. Nobody has tried the rule over a wider range.
_MOST = 2.0
# The largest share of the steps that the warm-up takes.
_WARMUP = 0.1


def settings_by_rule(job: Job, d_model: int, tokens: float) -> dict[str, int | float]:
    """Return the fields of `pretrain` that train a model of this width on about so many tokens:
    steps, batch, rates and, if it has to be shorter, the warm-up."""
    train = job.section("pretrain")
    own_tokens = train.total_steps * train.global_batch * job.data.seq_len
    batch = round_batch(train.global_batch * (tokens / own_tokens) ** BATCH_POWER)
    steps = max(1, int(tokens / (batch * job.data.seq_len)))
    by_batch = min(max(math.sqrt(batch / train.global_batch), 1 / _MOST), _MOST)
    by_width = (d_model / job.model_config_resolved().d_model) ** -0.5
    settings: dict[str, int | float] = {"steps": steps, "global_batch": batch}
    given = {name: getattr(train, name) for name in _ADAMW}
    settings |= {
        name: _rounded(rate * by_batch * by_width)
        for name, rate in given.items()
        if rate is not None
    }
    if train.optimizer == "muon":
        settings["muon_lr"] = _rounded(train.muon_lr * by_batch)
    warmup = min(train.total_warmup_steps, int(_WARMUP * steps))
    named = job.pretrain is not None and job.pretrain.recipe is not None
    if warmup != train.warmup_steps or named:  # a recipe's warm-up would follow the steps
        settings["warmup_steps"] = warmup
    return settings


def round_batch(batch: float) -> int:
    """Return the nearest batch with few binary digits: …, 28, 32, 40, 48, 56, 64, 80, …"""
    step = 2 ** max(0, math.floor(math.log2(max(batch, 1))) - (_DIGITS - 1))
    return max(1, round(batch / step) * step)


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
