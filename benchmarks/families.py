"""Compare what families learn and cost: dense Pion, Tachyon and Daisy-Wee on the demo's text.

    uv run python -m benchmarks.families [--steps 240] [--seeds 5]

Each model has the same active matrix FLOPs a token within 0.3 %, and each family trains with the
settings of its demo. For each seed, all models train on the same rows in the same order, one after
the other, each in its own process, in bf16. Then held-out text is scored as in the evaluate stage,
in fp32. `tachyon, balance per step` differs from `tachyon` only in its balance loss: over all rows
of a step, in place of each row.

A difference from the first model, or of the two balance losses, is the mean over seeds of paired
differences. It counts as real where |t| > 2.8, which is p < 0.05 for five seeds. Peak memory is the
resident peak of a process minus what was resident after the imports (Linux). Writes
benchmarks/results/families.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.memory import resident
from pion.config import ModelConfig
from pion.data.stream import RowStream
from pion.data.tokenizer import Tokenizer
from pion.evaluate import HeldOut, Scorer, held_out
from pion.model.cost import cost_of
from pion.model.decoder import Decoder
from pion.train.hardware import device_name
from pion.train.settings import ComputePlan
from pion.train.trainer import Trainer
from pipeline.data.prepared import open_data
from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.job.settings import settings_of
from pipeline.stages.prepare import prepare_pretrain

RESULT = Path(__file__).parent / "results" / "families.json"
JOBS = Path(__file__).parent.parent / "jobs"
# The job of each model, and what is changed in it so that all have the same active matrix FLOPs.
MODELS: dict[str, tuple[str, list[str]]] = {
    "dense": ("demo.yaml", []),
    "tachyon": ("demo-tachyon.yaml", []),
    "tachyon, balance per step": ("demo-tachyon.yaml", []),
    "daisy": ("demo-daisy.yaml", ["model.d_ff=1096"]),
}
PER_STEP = "tachyon, balance per step"
MOST_FLOPS_APART = 0.003
REAL = 2.8  # |t| of a difference, for five seeds
WARMUP_STEPS = 5  # not timed
SCORED_AT_ONCE = 16  # rows


def job_of(name: str, steps: int) -> Job:
    """Return the job of the named model, with `steps` steps of pretraining."""
    file, overrides = MODELS[name]
    return load_job(JOBS / file, [*overrides, f"pretrain.steps={steps}"])


def config_of(name: str, job: Job) -> ModelConfig:
    """Return the named model's shape."""
    config = job.model_config_resolved()
    if name != PER_STEP:
        return config
    assert config.experts is not None
    # A step has one micro-batch here, so "batch" is the step.
    experts = dataclasses.replace(config.experts, balance="batch")
    return dataclasses.replace(config, experts=experts)


# ---------------------------------------------------------------- one model, in its own process


def train(name: str, steps: int, seed: int, data: Path) -> dict[str, Any]:
    """Train the named model on the prepared `data`, and return its measures."""
    before = resident("VmRSS")
    job = job_of(name, steps)
    assert job.pretrain is not None
    opened = open_data(data)

    def stream(split: str) -> RowStream:
        window, documents = job.data.window, job.within_documents
        return opened.stream(split, seed=seed, window=window, documents=documents)

    settings = settings_of(job.pretrain)
    torch.manual_seed(seed)
    plan = ComputePlan(
        dtype="bfloat16", micro_batch=settings.global_batch, threads=torch.get_num_threads()
    )
    trainer = Trainer(Decoder(config_of(name, job)), stream("train"), settings, plan)
    speeds = []
    for _ in range(steps):
        trainer.train_step()
        speeds.append(trainer.drain_metrics()[-1]["tokens_per_second"])
    peak = resident("VmHWM") - before
    trainer.close()
    scored = score(
        trainer.model, stream("held_out"), job.evaluate.final_rows, opened.tokenizer_path
    )
    return {
        "bits_per_byte": scored.bits_per_byte,
        "tokens_per_second": statistics.median(speeds[WARMUP_STEPS:]),
        "peak_mib": peak / 2**20,
    }


def score(model: Decoder, rows: RowStream, count: int, tokenizer_file: Path) -> HeldOut:
    """Return how well `model` predicts the first `count` held-out rows, in fp32."""
    tokenizer = Tokenizer.from_file(tokenizer_file)
    scorer = Scorer(model.eval(), tokenizer.vocab_size, SCORED_AT_ONCE)
    with torch.inference_mode():
        return held_out(scorer, rows, range(count), tokenizer.token_bytes())


# ---------------------------------------------------------------- all models


def run_all(steps: int, seeds: int) -> dict[str, dict[str, list[float]]]:
    """Return every measure of every model, a value for each seed."""
    measures: dict[str, dict[str, list[float]]] = {name: {} for name in MODELS}
    with tempfile.TemporaryDirectory() as folder:
        prepare_pretrain(job_of("dense", steps), Path(folder), lambda message: None)
        for seed in range(seeds):
            for name in MODELS:
                command = [sys.executable, "-m", "benchmarks.families", "--steps", str(steps)]
                command += ["--train", name, str(seed), folder]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                print(f"seed {seed}, {name}: {done.stdout.strip()}", flush=True)
                for measure, value in json.loads(done.stdout).items():
                    measures[name].setdefault(measure, []).append(value)
    return measures


def paired(these: list[float], others: list[float]) -> dict[str, Any]:
    """Return the mean of the paired differences, its t, and whether it counts as real."""
    differences = [a - b for a, b in zip(these, others, strict=True)]
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    t = mean / error if error else math.copysign(math.inf, mean)
    return {"difference": round(mean, 4), "t": round(t, 1), "real": abs(t) > REAL}


def summary(measures: dict[str, dict[str, list[float]]], steps: int) -> dict[str, Any]:
    """Return the measures of each model, next to those of the first."""
    baseline = measures[next(iter(MODELS))]
    models = {}
    for name, own in measures.items():
        cost = cost_of(config_of(name, job_of(name, steps)))
        speeds = zip(own["tokens_per_second"], baseline["tokens_per_second"], strict=True)
        models[name] = {
            "params": cost.all_params,
            "active_params": cost.active_params,
            "macs_per_token": cost.macs_per_token,
            "bits_per_byte": round(statistics.mean(own["bits_per_byte"]), 4),
            "bits_per_byte_of_seeds": [round(value, 4) for value in own["bits_per_byte"]],
            "tokens_per_second": round(statistics.median(own["tokens_per_second"])),
            "speed_ratio": round(statistics.median(a / b for a, b in speeds), 3),
            "peak_mib": round(statistics.median(own["peak_mib"])),
        }
        if own is not baseline:
            models[name]["from_dense"] = paired(own["bits_per_byte"], baseline["bits_per_byte"])
    per_step = measures[PER_STEP]["bits_per_byte"]
    models[PER_STEP]["from_tachyon"] = paired(per_step, measures["tachyon"]["bits_per_byte"])
    return models


def check_equal_flops(steps: int) -> None:
    """Raise SystemExit unless all models have the same active matrix FLOPs a token."""
    macs = {name: cost_of(config_of(name, job_of(name, steps))).macs_per_token for name in MODELS}
    least, most = min(macs.values()), max(macs.values())
    if most > least * (1 + MOST_FLOPS_APART):
        raise SystemExit(f"not the same FLOPs: multiply-accumulates a token are {macs}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--train", nargs=3, metavar=("MODEL", "SEED", "DATA"))
    options = parser.parse_args()
    if options.train:
        name, seed, data = options.train
        print(json.dumps(train(name, options.steps, int(seed), Path(data))))
        return
    check_equal_flops(options.steps)
    report = {
        "device": device_name(torch.device("cpu")),
        "load_average_before": round(os.getloadavg()[0], 2),
        "steps": options.steps,
        "seeds": options.seeds,
        "models": summary(run_all(options.steps, options.seeds), options.steps),
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
