"""Check that a resumed run ends with the weights of an unbroken run, bit by bit.

    python -m pion.bench.correctness.resume cuda:0 pion      prints the outcome as JSON

On CUDA this needs deterministic kernels, and cuBLAS reads whether to be deterministic only once in
a process. So on CUDA the check runs in a separate process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from pion.bench.card import PACKAGE
from pion.bench.models import Bench, Rows, check_model, refuse, scrambled, twin
from pion.bench.results import Outcome, judged
from pion.secret_names import without_secret_names
from pion.train.hardware import pick_compile, pick_dtype
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.trainer import Trainer, TrainState

STEPS, SAVED_AT, BATCH = 6, 3, 4
SECONDS = 300.0


def check_resume(bench: Bench, family: str) -> Outcome:
    """Train, save to bytes, and train on from these bytes; compare with an unbroken run."""
    if not bench.on_cuda:
        return compare_resume(bench, family)
    command = [sys.executable, "-m", __name__, str(bench.device), family]
    command += ["tiny"] if bench.tiny else []
    done = subprocess.run(
        command,
        cwd=PACKAGE.parent,
        env=without_secret_names(),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"the process of this check ended with {done.returncode}: {last}")
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def compare_resume(bench: Bench, family: str) -> Outcome:
    """Make the comparison in this process."""
    whole = _trainer(bench, family)
    with contextlib.closing(whole):
        _train(whole, STEPS)
        expected = _bytes_of(whole)
    first, second = _trainer(bench, family), _trainer(bench, family)
    with contextlib.closing(first), contextlib.closing(second):
        _train(first, SAVED_AT)
        state = first.state()
        stored = save(_all(state)), json.dumps(state.meta)
        _train(first, 1)  # what was saved must not change with the trainer
        second.load(_restored(*stored))
        _train(second, STEPS - SAVED_AT)
        found = _bytes_of(second)
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    names = ", ".join(sorted(different)[:3])
    words = (
        f"{len(different)} of {len(expected)} tensors differ: {names}"
        if different
        else f"{len(expected)} tensors are the same, bit by bit"
    )
    return judged(not different, words, tensors=len(expected), different=len(different))


def _trainer(bench: Bench, family: str) -> Trainer:
    config = check_model(family, bench.tiny)
    optimizer: Any = "muon" if family == "daisy" else "adamw"
    settings = TrainSettings(steps=STEPS, global_batch=BATCH, lr=1e-3, optimizer=optimizer)
    deterministic = bench.on_cuda  # a CPU always is
    plan = ComputePlan(
        str(bench.device),
        pick_dtype("auto", bench.device),
        micro_batch=BATCH // 2,
        compile=not bench.tiny and pick_compile("auto", bench.device, deterministic=deterministic),
        deterministic=deterministic,
    )
    rows: Any = Rows(config.vocab_size, config.seq_len)
    trainer = Trainer(twin(scrambled(config), bench.device), rows, settings, plan)
    trainer.on_step_down = refuse
    return trainer


def _train(trainer: Trainer, steps: int) -> None:
    for _ in range(steps):
        trainer.train_step()


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
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}}
    for name, tensor in loaded.items():
        part, _, rest = name.partition("/")
        parts[part][rest] = tensor
    return TrainState(**parts, meta=json.loads(meta))


def main() -> None:
    device, family, *tiny = sys.argv[1:]
    outcome = compare_resume(Bench(torch.device(device), bool(tiny)), family)
    print(json.dumps(dataclasses.asdict(outcome)))


if __name__ == "__main__":
    main()
