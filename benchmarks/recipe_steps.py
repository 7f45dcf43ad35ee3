"""Time the first steps of the recipes with experts or windows, on this machine.

    uv run python -m benchmarks.recipe_steps [JOB …] [--steps 3] [--seq-len 2048]

A recipe's model and settings are those of its job. A step is a single row of --seq-len random ids
in bf16, since the steps of the recipes are made for GPUs. Each job runs in its own process. The
first step also compiles and allocates. Peak memory is the resident peak minus what was resident
after the imports (Linux). Writes benchmarks/results/recipe_steps.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import resident
from benchmarks.random_rows import RandomRows
from pion.model.decoder import Decoder
from pion.model.params_and_flops import cost_of
from pion.train.hardware import device_name
from pion.train.settings import ComputePlan
from pion.train.trainer import Trainer
from pipeline.job.file import load_job
from pipeline.job.train_sections import settings_of

RESULT = Path(__file__).parent / "results" / "recipe_steps.json"
JOBS = Path(__file__).parent.parent / "jobs"
RECIPES = ["tachyon-tiny", "daisy-280m", "daisy-420m"]


def time_recipe(name: str, steps: int, seq_len: int) -> dict[str, Any]:
    """Train `steps` steps of a recipe in this process, and return their seconds and memory."""
    before = resident("VmRSS")
    job = load_job(JOBS / f"{name}.yaml", ["pretrain.global_batch=1", "data.held_out=0.01"])
    assert job.pretrain is not None
    config = job.model_config_resolved()
    torch.manual_seed(job.seed)
    plan = ComputePlan(dtype="bfloat16", micro_batch=1, threads=torch.get_num_threads())
    rows: Any = RandomRows(config.vocab_size, seq_len)
    trainer = Trainer(Decoder(config), rows, settings_of(job.pretrain), plan)
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        trainer.train_step()
        (metrics,) = trainer.drain_metrics()
        seconds.append(time.perf_counter() - started)
    trainer.close()
    return {
        "params": cost_of(config).all_params,
        "seconds": [round(value, 2) for value in seconds],
        "tokens_per_second": round(seq_len / min(seconds)),
        "peak_mib": (resident("VmHWM") - before) // 2**20,
        "last_loss": round(metrics["loss"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("jobs", nargs="*", default=RECIPES)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--here", action="store_true", help="time one job in this process")
    options = parser.parse_args()
    if options.here:
        (name,) = options.jobs
        print(json.dumps(time_recipe(name, options.steps, options.seq_len)))
        return
    report: dict[str, Any] = {
        "device": device_name(torch.device("cpu")),
        "load_average_before": round(os.getloadavg()[0], 2),
        "seq_len": options.seq_len,
    }
    shape = ["--steps", str(options.steps), "--seq-len", str(options.seq_len)]
    for name in options.jobs:
        command = [sys.executable, "-m", "benchmarks.recipe_steps", "--here", *shape, name]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        report[name] = json.loads(done.stdout)
        print(name, report[name], flush=True)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
