"""Check that a step that runs out of memory begins again by a smaller plan, and learns the same."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

from pion.bench.models import Bench, Rows, check_model, exact_float32, scrambled, twin
from pion.bench.results import Outcome, judged
from pion.model.decoder import Decoder, Losses
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.trainer import Trainer

STEPS, BATCH = 3, 4
# The most that a loss or a gradient's norm may differ, as a share. Both runs are on one device.
LIMIT = 1e-4
# From whole batches to single rows, and then with recomputed activations.
LADDER = ["micro_batch 4 → 2", "micro_batch 2 → 1", "recompute false → true"]


def check_step_down(bench: Bench) -> Outcome:
    """Let steps run out of memory; compare with steps by the plan that remains.

    On CUDA, the card's own allocator runs out: the model asks for more than the card has, after
    the first micro-batch where there are several.
    """
    changes: list[str] = []
    trainer = _trainer(bench, ComputePlan(str(bench.device), micro_batch=BATCH))
    trainer.on_step_down = lambda change: changes.append(change.changes)
    _need_too_much(trainer.model)
    found = _measures(trainer)
    # A run without the memory's errors, by the last plan of the ladder.
    plan = ComputePlan(str(bench.device), micro_batch=1, recompute=True)
    expected = _measures(_trainer(bench, plan))
    apart = max(abs(a - b) / b for a, b in zip(found, expected, strict=True))
    return judged(
        changes == LADDER and trainer.plan == plan and apart <= LIMIT,
        f"{'; '.join(changes) or 'no change'}; largest difference {apart:.1e} of losses and "
        f"gradients, at most {LIMIT:.0e}",
        changes=len(changes),
        largest=apart,
        limit=LIMIT,
    )


def _trainer(bench: Bench, plan: ComputePlan) -> Trainer:
    config = check_model("pion", bench.tiny)
    settings = TrainSettings(steps=STEPS, global_batch=BATCH, lr=1e-3)
    rows: Any = Rows(config.vocab_size, config.seq_len)
    return Trainer(twin(scrambled(config), bench.device), rows, settings, plan)


def _measures(trainer: Trainer) -> list[float]:
    """Train; return the loss and the norm of the gradient of each step."""
    with exact_float32(), contextlib.closing(trainer):
        for _ in range(STEPS):
            trainer.train_step()
        steps = trainer.drain_metrics()
    return [step[name] for step in steps for name in ("loss", "grad_norm")]


def _need_too_much(model: Decoder) -> None:
    """Let the model run out of memory in the last pass of a step, unless it recomputes."""
    true_losses, rows = model.losses, 0

    def losses(tokens: Tensor, targets: Tensor, **rest: Any) -> Losses:
        nonlocal rows
        rows += len(tokens)
        if rows >= BATCH:
            rows = 0
            if not model.recompute:
                _run_out(tokens.device)
        return true_losses(tokens, targets, **rest)

    model.losses = losses  # type: ignore[method-assign]


def _run_out(device: torch.device) -> None:
    """Raise torch's error for too little memory; on CUDA, the allocator raises it."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.empty(2 * total, dtype=torch.uint8, device=device)
    raise torch.OutOfMemoryError("Tried to allocate more than there is")
