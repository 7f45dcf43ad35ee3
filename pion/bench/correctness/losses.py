"""Compare the losses of twenty training steps on the card with those of fp32 on the CPU."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any, Literal

import torch

from pion.bench.models import (
    Bench,
    Rows,
    check_model,
    exact_float32,
    refuse,
    scrambled,
    twin,
)
from pion.bench.results import Outcome, judged
from pion.model.decoder import Decoder
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.trainer import Trainer

Dtype = Literal["float32", "bfloat16"]
STEPS = 20
# The most that a loss may differ, as a share of the CPU's.
LIMITS: dict[Dtype, float] = {"float32": 1e-3, "bfloat16": 2e-2}
BATCH = 4  # rows of a step, in two micro-batches


def check_losses(bench: Bench, family: str, dtype: Dtype) -> Outcome:
    """Train twenty steps, and compare each loss with that of the same step on the CPU.

    On CUDA, the bf16 steps are compiled, as those of a run are. The fp32 steps are not compiled.
    """
    expected = _on_cpu(family, bench.tiny)
    found = _losses(_model(family, bench.tiny, bench.device), family, bench, dtype)
    limit = LIMITS[dtype]
    apart = [abs(a - b) / b for a, b in zip(found, expected, strict=True)]
    return judged(
        all(share <= limit for share in apart),
        f"largest difference {max(apart):.1e} of the loss, at most {limit:.0e}; "
        f"loss {expected[0]:.2f} → {expected[-1]:.2f}",
        largest=max(apart),
        limit=limit,
        first_loss=found[0],
        last_loss=found[-1],
    )


@lru_cache(maxsize=8)
def _on_cpu(family: str, tiny: bool) -> tuple[float, ...]:
    cpu = Bench(torch.device("cpu"), tiny)
    model = _model(family, tiny, cpu.device, reference=True)
    return tuple(_losses(model, family, cpu, "float32"))


def _model(family: str, tiny: bool, device: torch.device, reference: bool = False) -> Decoder:
    model = scrambled(check_model(family, tiny))
    return model if reference else twin(model, device)


def _losses(model: Decoder, family: str, bench: Bench, dtype: Dtype) -> list[float]:
    """Return the losses of STEPS steps. Daisy-Wees train with Muon, as in their recipes."""
    config = model.config
    settings = TrainSettings(
        steps=STEPS,
        global_batch=BATCH,
        lr=3e-3 if bench.tiny else 1e-3,
        optimizer="muon" if family == "daisy" else "adamw",
    )
    compiled = bench.on_cuda and dtype == "bfloat16" and not bench.tiny
    plan = ComputePlan(str(bench.device), dtype, micro_batch=BATCH // 2, compile=compiled)
    rows: Any = Rows(config.vocab_size, config.seq_len)
    trainer = Trainer(model, rows, settings, plan)
    trainer.on_step_down = refuse
    with exact_float32(), contextlib.closing(trainer):
        for _ in range(STEPS):
            trainer.train_step()
        return [step["loss"] for step in trainer.drain_metrics()]
