"""Estimate how fast a training step is on GPUs, without a GPU.

    uv run python -m benchmarks.roofline

THE TIMES ARE ESTIMATES. Nothing runs on a GPU. Each operation of a step on a pretended card
(step_counts.py) takes the longer of two times: its FLOPs at REACHED_FLOPS of the GPU's peak, and
its bytes at REACHED_BANDWIDTH of the GPU's bandwidth. Both shares are assumptions. Starting a
kernel takes no time here, so launches are a separate number. Counts (bytes, launches) follow from
the code and from inductor's graphs, and do not depend on the two shares.

For each family and GPU, the step is counted as it runs eagerly, with compiled blocks, and with a
residual stream in bf16. MFU is the model's useful FLOPs over the estimated time and the GPU's bf16
peak. `least_milliseconds` is the time of products and attention alone: no better fusion can make
the step faster than this.

`checked` has smaller counts. A test repeats them, and fails if one is more than 5 % worse.
Writes benchmarks/results/roofline.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.step_counts import Counted, Residual, Step, count_step
from pion.config.model_config import ModelConfig
from pion.model.params_and_flops import flops_per_token
from pion.train.hardware import gpu_flops
from tests.cuda_rehearsal.environment import (
    compile_shim,
    pinned_torch,
    run_pretended,
    this_machine,
    why_impossible,
)
from tests.cuda_rehearsal.pretended_card import pretended_card
from tests.cuda_rehearsal.report import hand_back, handed_back
from tests.cuda_rehearsal.watch import Watch

RESULT = Path(__file__).parent / "results" / "roofline.json"
PRESETS = ("pion-small", "tachyon-tiny", "daisy-280m", "pilon-360m")
ROWS, SEQ_LEN = 16, 2048
CARDS = ("A40", "H200")
# Of the memory, from NVIDIA's data sheets, in bytes per second. The H100 is the SXM module.
BANDWIDTH = {"A40": 696e9, "H100": 3.35e12, "H200": 4.8e12}
REACHED_FLOPS, REACHED_BANDWIDTH = 0.75, 0.85
# What `checked` of the result has.
EAGER, COMPILED = "pion-small, eager", "one block of pion-small, compiled"
IN_BF16 = "residual in bf16"
MOST_WORSE = 1.05
NOTE = (
    "estimates: nothing ran on a GPU; each operation takes the longer of its FLOPs at "
    f"{REACHED_FLOPS} of the peak and its bytes at {REACHED_BANDWIDTH} of the bandwidth"
)


# How blocks run, by name: whether they are compiled, and the precision of the residual stream.
ENGINES: dict[str, tuple[bool, Residual]] = {
    "eager": (False, "float32"),
    "compiled": (True, "float32"),
    f"compiled, {IN_BF16}": (True, "bfloat16"),
}


# ---------------------------------------------------------------- estimates


def seconds(operation: Counted, card: str) -> float:
    """Return the estimated time of an operation."""
    peak = gpu_flops(card, "float32" if operation.fp32 else "bfloat16")
    assert peak is not None
    computing = operation.flops / (peak * REACHED_FLOPS)
    return max(computing, operation.bytes / (BANDWIDTH[card] * REACHED_BANDWIDTH))


def estimate(step: Step, counted: list[Counted]) -> dict[str, Any]:
    """Return what a step moves and starts, and how long it takes on its card."""
    peak = gpu_flops(step.card, "bfloat16")
    assert peak is not None
    total = sum(seconds(operation, step.card) for operation in counted)
    products = [operation for operation in counted if operation.flops]
    least = sum(seconds(operation, step.card) for operation in products)
    useful = step.rows * step.seq_len * flops_per_token(step.config, step.seq_len)
    parts: dict[str, list[Counted]] = {}
    for operation in counted:
        parts.setdefault(operation.part, []).append(operation)
    return {
        "gigabytes_outside_products": round(sum(o.bytes for o in counted if not o.flops) / 1e9, 1),
        "gigabytes": round(sum(o.bytes for o in counted) / 1e9, 1),
        "launches": sum(o.launches for o in counted),
        "estimated_milliseconds": round(total * 1e3, 1),
        "estimated_mfu": round(useful / total / peak, 3),
        "least_milliseconds": round(least * 1e3, 1),
        "mfu_at_least_milliseconds": round(useful / least / peak, 3),
        "estimated_milliseconds_of_parts": {
            part: round(sum(seconds(o, step.card) for o in own) * 1e3, 1)
            for part, own in sorted(parts.items())
        },
    }


# ---------------------------------------------------------------- what is counted


def count_all(watch: Watch, presets: list[str]) -> dict[str, Any]:
    """Return the estimates of every preset on every card, eager and compiled."""
    models: dict[str, Any] = {}
    for preset in presets:
        config = ModelConfig.preset(preset)
        for card in CARDS:
            for name, (compiled, residual) in ENGINES.items():
                step = Step(config, ROWS, SEQ_LEN, card, compiled, residual)
                found = estimate(step, count_step(watch, step))
                models.setdefault(preset, {}).setdefault(card, {})[name] = found
    return models


def checked_steps() -> dict[str, Step]:
    """Return the steps that a test counts again. One block stands for all: compiling is slow."""
    whole, one = ModelConfig.preset("pion-small"), ModelConfig.preset("pion-small", n_layers=1)
    return {
        EAGER: Step(whole, ROWS, SEQ_LEN, "A40", compiled=False),
        COMPILED: Step(one, ROWS, SEQ_LEN, "A40", compiled=True),
        f"{COMPILED}, {IN_BF16}": Step(one, ROWS, SEQ_LEN, "A40", True, "bfloat16"),
    }


def count_checked(watch: Watch, steps: dict[str, Step]) -> dict[str, dict[str, Any]]:
    """Return the counts of these steps that a test compares with the committed result."""
    estimates = {name: estimate(step, count_step(watch, step)) for name, step in steps.items()}
    names = ("gigabytes_outside_products", "launches", "estimated_milliseconds")
    return {name: {key: found[key] for key in names} for name, found in estimates.items()}


def worse(now: dict[str, Any], committed: dict[str, Any]) -> list[str]:
    """Return which counts are worse than MOST_WORSE times the committed counts, as text."""
    return [
        f"{name}: {key} is {value}, and was {committed[name][key]}"
        for name, counts in now.items()
        for key, value in counts.items()
        if value > MOST_WORSE * committed[name][key]
    ]


# ---------------------------------------------------------------- the command


def counted_on_pretended_card(presets: Sequence[str]) -> Any:
    """Return what this program with `--here` hands back in a process that pretends a GPU.

    Raises SystemExit, with the reason, on a machine where that is impossible.
    """
    reason = why_impossible(this_machine(), pinned_torch())
    if reason is not None:
        raise SystemExit(reason)
    with tempfile.TemporaryDirectory() as folder:
        shim = compile_shim(Path(folder))
        return handed_back(run_pretended("benchmarks.roofline", shim, "--here", *presets))


def print_table(models: dict[str, Any]) -> None:
    """Print the estimates, one line for each."""
    print(NOTE)
    print(f"{'':45} GB outside products   launches   estimated ms   est. MFU")
    for preset, cards in models.items():
        for card, engines in cards.items():
            for name, found in engines.items():
                print(
                    f"{preset:12} {card:5} {name:26} {found['gigabytes_outside_products']:6} "
                    f"{found['launches']:10} {found['estimated_milliseconds']:14} "
                    f"{found['estimated_mfu']:10.1%}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("presets", nargs="*", default=PRESETS)
    parser.add_argument("--here", action="store_true", help="count in this process")
    options = parser.parse_args()
    if options.here:
        with pretended_card() as watch:
            models = count_all(watch, options.presets)
            hand_back({"checked": count_checked(watch, checked_steps()), "models": models})
        return
    counted = counted_on_pretended_card(options.presets)
    report = {
        "note": NOTE,
        "torch": torch.__version__.partition("+")[0],
        "micro_batch": f"{ROWS} rows of {SEQ_LEN} tokens, bf16, AdamW",
    } | counted
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print_table(report["models"])


if __name__ == "__main__":
    main()
