"""Compare the peak memory of a training step with transformers.

Each measurement is a fresh process that trains a few steps: its resident peak minus what was
resident after the imports (Linux). Making the first optimizer imports much of torch, so one is made
before. A compiled step has no target: it is compared with transformers' eager step in bf16, and its
memory includes the compiler.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers

from benchmarks.comparison import Comparison, Measure, alternate, at_most, compare
from benchmarks.trainees import NANO, TINY, pion, qwen3, random_rows, stepper, targets_of

ROUNDS, STEPS = 3, 4
PRECISIONS = ("fp32", "bf16")
# Transformers imports these when the first model is made. They count as imports.
IMPORTED = (transformers.Qwen3Config, transformers.Qwen3ForCausalLM)
QWEN3 = "transformers Qwen3"


def run(quick: bool) -> Iterator[Comparison]:
    """Yield the comparisons of eager steps, and of a compiled step."""
    precisions = PRECISIONS[:1] if quick else PRECISIONS
    names = [f"{model} {precision}" for precision in precisions for model in ("pion", "qwen3")]
    if not quick:
        names.append("compiled bf16")
    measures = {name: in_a_process(name, quick) for name in names}
    peaks = alternate(measures, 1 if quick else ROUNDS)
    for precision in precisions:
        ours, theirs = peaks[f"pion {precision}"], peaks[f"qwen3 {precision}"]
        yield compare((f"peak memory, {precision}", QWEN3, "MiB"), ours, theirs, at_most(0.65))
    if not quick:
        compiled, theirs = peaks["compiled bf16"], peaks["qwen3 bf16"]
        yield compare(("peak memory, bf16 compiled", QWEN3, "MiB"), compiled, theirs)


def in_a_process(name: str, quick: bool) -> Measure:
    """Return a measure of the named side's peak MiB, in a process for each measurement."""
    command = [sys.executable, "-m", "benchmarks.peak_memory", *name.split()]
    command += ["quick"] if quick else []

    def measure(number: int) -> float:
        done = subprocess.run(command, stdout=subprocess.PIPE, encoding="utf-8", check=True)
        return float(done.stdout.split()[-1])

    return measure


def own_peak(model: str, precision: str, quick: bool) -> float:
    """Train a few steps in this process, and return the peak MiB above the imports."""
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)], fused=True)
    before = resident("VmRSS")
    shape = TINY if quick else NANO
    if model == "qwen3":
        trainee = qwen3(shape.config)
    else:
        trainee = pion(shape.config, compiled=model == "compiled")
    step = stepper(trainee, bf16=precision == "bf16")
    tokens = random_rows(shape)
    for _ in range(STEPS):
        step(tokens, targets_of(tokens))
    return (resident("VmHWM") - before) / 2**20


def resident(field: str) -> int:
    """Return a memory field of this process in bytes: VmRSS (now) or VmHWM (at its highest)."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    print(own_peak(sys.argv[1], sys.argv[2], sys.argv[3:] == ["quick"]))
