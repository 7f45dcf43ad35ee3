"""Compare a training step of Pion-nano with transformers' Qwen3ForCausalLM of the same shape.

    uv run python -m benchmarks.train_speed [--rounds 15] [--batch 4] [--seq-len 256]

A step is forward, backward, clipping to norm 1 and fused AdamW for both models; Qwen3 computes its
loss from `labels`. Both start from the same weights. Steps are timed in turn in one process, one of
each model per round, so that other load on the machine affects both alike. The speeds are medians,
and the ratio is the median over rounds. Run this on an idle machine: if other processes use the
cores, every small operation waits for them, and the ratio means little.

Peak memory is measured in a fresh process for each model: its resident peak minus what was resident
after the imports (Linux). Prints a table and writes benchmarks/results/train_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from benchmarks.memory import resident
from pion.config import ModelConfig
from pion.exports.qwen3 import to_qwen3
from pion.model.decoder import Decoder
from pion.model.loss import IGNORED

PRECISIONS = {"fp32": False, "bf16": True}
MODELS = ("pion", "qwen3")
WARMUP_STEPS = 3
MEMORY_STEPS = 4
RESULTS = Path(__file__).parent / "results" / "train_speed.json"


def training_step(model_name: str, precision: str, batch: int, seq_len: int) -> Callable[[], None]:
    """Return a function that trains the named model by one step."""
    torch.manual_seed(0)
    config = ModelConfig.preset("pion-nano")
    decoder = Decoder(config)
    tokens = torch.randint(0, config.vocab_size, (batch, seq_len))
    model: nn.Module
    if model_name == "pion":
        model = decoder
        targets = torch.cat((tokens[:, 1:], torch.full((batch, 1), IGNORED)), dim=1)

        def loss() -> Tensor:
            return decoder.loss(tokens, targets)
    else:
        hf_config, state = to_qwen3(config, decoder.state_dict())
        model = qwen3 = Qwen3ForCausalLM(Qwen3Config(**hf_config))
        qwen3.load_state_dict(state, strict=False)
        del decoder, state

        def loss() -> Tensor:
            return qwen3(input_ids=tokens, labels=tokens).loss

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=PRECISIONS[precision]):
            value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def time_all(rounds: int, batch: int, seq_len: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of each step by precision and model, measured in turn."""
    steps = {
        (precision, name): training_step(name, precision, batch, seq_len)
        for precision in PRECISIONS
        for name in MODELS
    }
    seconds: dict[str, dict[str, list[float]]] = {
        precision: {name: [] for name in MODELS} for precision in PRECISIONS
    }
    for round_number in range(WARMUP_STEPS + rounds):
        for (precision, name), step in steps.items():
            start = time.perf_counter()
            step()
            if round_number >= WARMUP_STEPS:
                seconds[precision][name].append(time.perf_counter() - start)
    return seconds


def measure_memory(model_name: str, precision: str, batch: int, seq_len: int) -> int:
    """Return the peak bytes of a few steps, above those of the imports, in a separate process."""
    command = [sys.executable, "-m", "benchmarks.train_speed", "--memory-of", model_name, precision]
    command += ["--batch", str(batch), "--seq-len", str(seq_len)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def print_own_memory(model_name: str, precision: str, batch: int, seq_len: int) -> None:
    """Train a few steps in this process, and print the peak bytes above those of the imports."""
    before = resident("VmRSS")
    step = training_step(model_name, precision, batch, seq_len)
    for _ in range(MEMORY_STEPS):
        step()
    print(resident("VmHWM") - before)


def compare(rounds: int, batch: int, seq_len: int) -> list[dict[str, Any]]:
    """Return the speed and memory of both models, one row for each precision."""
    seconds = time_all(rounds, batch, seq_len)
    tokens = batch * seq_len
    rows = []
    for precision in PRECISIONS:
        ours, theirs = (seconds[precision][name] for name in MODELS)
        memory = [measure_memory(name, precision, batch, seq_len) for name in MODELS]
        rows.append(
            {
                "precision": precision,
                "pion_tokens_per_second": round(tokens / statistics.median(ours)),
                "qwen3_tokens_per_second": round(tokens / statistics.median(theirs)),
                "speed_ratio": round(statistics.median(b / a for a, b in zip(ours, theirs)), 3),
                "pion_peak_mib": memory[0] // 2**20,
                "qwen3_peak_mib": memory[1] // 2**20,
                "memory_ratio": round(memory[0] / memory[1], 3),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--memory-of", nargs=2, metavar=("MODEL", "PRECISION"))
    options = parser.parse_args()
    batch, seq_len = options.batch, options.seq_len

    if options.memory_of:
        model_name, precision = options.memory_of
        print_own_memory(model_name, precision, batch, seq_len)
        return

    load = round(os.getloadavg()[0], 2)
    rows = compare(options.rounds, batch, seq_len)
    report = {
        "shape": "pion-nano, 28.7M parameters",
        "batch": batch,
        "seq_len": seq_len,
        "rounds": options.rounds,
        "load_average_before": load,
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "results": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    print("      tokens/s: pion  qwen3  ratio   peak MiB: pion  qwen3  ratio")
    for row in rows:
        print(
            f"{row['precision']}  {row['pion_tokens_per_second']:12}  "
            f"{row['qwen3_tokens_per_second']:5}  {row['speed_ratio']:5.2f}  "
            f"{row['pion_peak_mib']:14}  {row['qwen3_peak_mib']:5}  {row['memory_ratio']:5.2f}"
        )
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()
