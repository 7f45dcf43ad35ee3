"""Check that training continues exactly: after a resume, and after a step that ran out of memory.

    python -m tests.gpu.recovery cuda:0     prints the outcome of each family's resume as JSON

On CUDA a resume needs deterministic kernels, and cuBLAS reads whether to be deterministic only once
in a process. So on CUDA the checks of resumes run in a separate process, which all families share.
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
from functools import lru_cache
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

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
from pion.config.presets import FAMILIES
from pion.model.decoder import Decoder, Losses
from pion.train.hardware import pick_compile, pick_dtype
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.trainer import Trainer, TrainState
from tests.paths import REPOSITORY
from tests.support.waiting import run_to_end

RESUMED_STEPS, SAVED_AT, BATCH = 6, 3, 4
SHRUNK_STEPS = 3
# The most that a loss or a gradient's norm may differ, as a share. Both runs are on one device.
LIMIT = 1e-4
# From whole batches to single rows, and then with recomputed activations.
LADDER = ["micro_batch 4 → 2", "micro_batch 2 → 1", "recompute false → true"]


def check_resume(bench: Bench, family: str) -> Outcome:
    """Train, save to bytes, and train on from these bytes; compare with an unbroken run."""
    return resumes(bench)[family] if bench.on_cuda else compare_resume(bench, family)


@lru_cache
def resumes(bench: Bench) -> dict[str, Outcome]:
    """Return the outcomes of a separate process, by family."""
    tiny = ["tiny"] if bench.tiny else []
    command = [sys.executable, "-m", "tests.gpu.recovery", str(bench.device), *tiny]
    done = run_to_end(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {family: Outcome(**outcome) for family, outcome in found.items()}


def compare_resume(bench: Bench, family: str) -> Outcome:
    """Make the comparison in this process."""
    whole = _resumable(bench, family)
    with contextlib.closing(whole):
        train(whole, RESUMED_STEPS)
        expected = _bytes_of(whole)
    first, second = _resumable(bench, family), _resumable(bench, family)
    with contextlib.closing(first), contextlib.closing(second):
        train(first, SAVED_AT)
        state = first.state()
        stored = save(_all(state)), json.dumps(state.meta)
        train(first, 1)  # what was saved must not change with the trainer
        second.load(_restored(*stored))
        train(second, RESUMED_STEPS - SAVED_AT)
        found = _bytes_of(second)
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    names = ", ".join(sorted(different)[:3])
    words = (
        f"{len(different)} of {len(expected)} tensors differ: {names}"
        if different
        else f"{len(expected)} tensors are the same, bit by bit"
    )
    return judged(not different, words, tensors=len(expected), different=len(different))


def _resumable(bench: Bench, family: str) -> Trainer:
    config = check_model(family, bench.tiny)
    optimizer: Any = "muon" if family == "daisy" else "adamw"
    settings = TrainSettings(steps=RESUMED_STEPS, global_batch=BATCH, lr=1e-3, optimizer=optimizer)
    deterministic = bench.on_cuda  # a CPU always is
    plan = ComputePlan(
        str(bench.device),
        pick_dtype("auto", bench.device),
        micro_batch=BATCH // 2,
        compile=not bench.tiny and pick_compile("auto", bench.device, deterministic=deterministic),
        deterministic=deterministic,
    )
    return counting_trainer(twin(scrambled(config), bench.device), settings, plan)


def _all(state: TrainState) -> dict[str, Tensor]:
    """Return weights and optimizer state on the CPU, under names that tell them apart."""
    both = {"model": state.model, "optimizer": state.optimizer}
    return {
        f"{part}/{name}": tensor.detach().cpu().contiguous().clone()
        for part, tensors in both.items()
        for name, tensor in tensors.items()
    }


def _bytes_of(trainer: Trainer) -> dict[str, Tensor]:
    """Return the trainer's tensors as bytes, because NaN differs from itself."""
    tensors = _all(trainer.state())
    return {name: tensor.reshape(-1).view(torch.uint8) for name, tensor in tensors.items()}


def _restored(tensors: bytes, meta: str) -> TrainState:
    loaded = load(tensors)
    model, optimizer = (
        {name.removeprefix(part): t for name, t in loaded.items() if name.startswith(part)}
        for part in ("model/", "optimizer/")
    )
    return TrainState(model, optimizer, json.loads(meta))


def check_step_down(bench: Bench) -> Outcome:
    """Let steps run out of memory; compare with steps by the plan that remains.

    On CUDA, the card's own allocator runs out: the model asks for more than the card has, after
    the first micro-batch where there are several.
    """
    changes: list[str] = []
    trainer = _shrinking(bench, ComputePlan(str(bench.device), micro_batch=BATCH))
    trainer.on_step_down = lambda change: changes.append(change.changes)
    _need_too_much(trainer.model)
    found = _measures(trainer)
    # A run without the memory's errors, by the last plan of the ladder.
    plan = ComputePlan(str(bench.device), micro_batch=1, recompute=True)
    expected = _measures(_shrinking(bench, plan))
    apart = max(abs(a - b) / b for a, b in zip(found, expected, strict=True))
    return judged(
        changes == LADDER and trainer.plan == plan and apart <= LIMIT,
        f"{'; '.join(changes) or 'no change'}; largest difference {apart:.1e} of losses and "
        f"gradients, at most {LIMIT:.0e}",
        changes=len(changes),
        largest=apart,
        limit=LIMIT,
    )


def _shrinking(bench: Bench, plan: ComputePlan) -> Trainer:
    config = check_model("pion", bench.tiny)
    settings = TrainSettings(steps=SHRUNK_STEPS, global_batch=BATCH, lr=1e-3)
    return counting_trainer(twin(scrambled(config), bench.device), settings, plan)


def _measures(trainer: Trainer) -> list[float]:
    """Train; return the loss and the norm of the gradient of each step."""
    with exact_float32(), contextlib.closing(trainer):
        train(trainer, SHRUNK_STEPS)
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
            if not rest["options"].recompute:
                _run_out(tokens.device)
        return true_losses(tokens, targets, **rest)

    model.losses = losses  # type: ignore[method-assign]


def _run_out(device: torch.device) -> None:
    """Raise torch's error for too little memory; on CUDA, the allocator raises it."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.empty(2 * total, dtype=torch.uint8, device=device)
    raise torch.OutOfMemoryError("Tried to allocate more than there is")


def main() -> None:
    device, *tiny = sys.argv[1:]
    bench = Bench(torch.device(device), bool(tiny))
    found = {family: dataclasses.asdict(compare_resume(bench, family)) for family in FAMILIES}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
