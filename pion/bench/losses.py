"""Check that a card computes right: compare the losses of training steps with the CPU's."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Literal

import torch

from pion.bench.models import (
    Bench,
    check_model,
    counting_trainer,
    exact_float32,
    scrambled,
    train,
    twin,
)
from pion.bench.results import Outcome, judged
from pion.model.decoder import Decoder
from pion.train.settings import ComputePlan, TrainSettings

Dtype = Literal["float32", "bfloat16"]
STEPS = 20
# The most that a loss may differ, as a share of the CPU's.
LIMITS: dict[Dtype, float] = {"float32": 1e-3, "bfloat16": 2e-2}
# The same of a model that rounds what it computes with (PILON). If each of its weights changes by
# a millionth, these losses differ by up to 1.4e-3 on a CPU, too: rounding makes steps of it.
ROUNDING_LIMIT = 5e-3
BATCH = 4  # rows of a step, in two micro-batches


def check_losses(bench: Bench, family: str, dtype: Dtype) -> Outcome:
    """Train twenty steps, and compare each loss with that of the same step on the CPU.

    On CUDA, the bf16 steps are compiled, as those of a run are. The fp32 steps are not compiled.
    """
    expected = _on_cpu(family, bench.tiny)
    model = twin(scrambled(check_model(family, bench.tiny)), bench.device)
    losses = _losses(model, family, bench, dtype)
    limit = max(LIMITS[dtype], ROUNDING_LIMIT if model.config.mixed else 0.0)
    apart = [abs(a - b) / b for a, b in zip(losses, expected, strict=True)]
    return judged(
        all(share <= limit for share in apart),
        f"largest difference {max(apart):.1e} of the loss, at most {limit:.0e}; "
        f"loss {expected[0]:.2f} → {expected[-1]:.2f}",
        largest=max(apart),
        limit=limit,
        first_loss=losses[0],
        last_loss=losses[-1],
    )


@lru_cache(maxsize=8)
def _on_cpu(family: str, tiny: bool) -> tuple[float, ...]:
    cpu = Bench(torch.device("cpu"), tiny)
    return tuple(_losses(scrambled(check_model(family, tiny)), family, cpu, "float32"))


def _losses(model: Decoder, family: str, bench: Bench, dtype: Dtype) -> list[float]:
    """Return the losses of STEPS steps. Daisy-Wees train with Muon, as in their recipes."""
    settings = TrainSettings(
        steps=STEPS,
        global_batch=BATCH,
        lr=3e-3 if bench.tiny else 1e-3,
        optimizer="muon" if family == "daisy" else "adamw",
    )
    compiled = bench.on_cuda and dtype == "bfloat16" and not bench.tiny
    plan = ComputePlan(str(bench.device), dtype, micro_batch=BATCH // 2, compile=compiled)
    trainer = counting_trainer(model, settings, plan)
    with exact_float32(), contextlib.closing(trainer):
        train(trainer, STEPS)
        return [step["loss"] for step in trainer.drain_metrics()]
