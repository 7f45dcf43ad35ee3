"""Compare the speed of a mixture of experts with a dense model of equal active matrix FLOPs.

    uv run python -m benchmarks.expert_speed [--pairs 20] [--shapes demo tachyon-tiny]

The shapes are those of jobs/demo-tachyon.yaml, with Muon, and of the preset tachyon-tiny, with
AdamW, each with the optimizer of its job. The dense model has one feed-forward layer as wide as the
experts that a token uses; the router's products, 0.1 % of all, are on top. A step is 16,384 tokens
in bf16, in micro-batches of 4,096 tokens, optimizer included. Steps are timed in turn in one
process, so that other load on the machine affects both alike. The ratio is the median over pairs.
The tokens are random, so every expert gets its share.

Then a few steps of each are profiled, by operation. Writes benchmarks/results/expert_speed.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.random_rows import RandomRows
from pion.config.model_config import ModelConfig
from pion.model.decoder import Decoder
from pion.model.params_and_flops import cost_of
from pion.train.hardware import device_name
from pion.train.schedule import plan_at
from pion.train.settings import ComputePlan
from pion.train.trainer import Trainer
from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.job.train_sections import settings_of

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "expert_speed.json"
JOBS = {"demo": "demo-tachyon.yaml", "tachyon-tiny": "tachyon-tiny.yaml"}
STEP_TOKENS, MICRO_BATCH_TOKENS = 16_384, 4096
WARMUP_STEPS, PROFILED_STEPS, OPERATIONS_SHOWN = 2, 2, 12


def models_of(job: Job) -> dict[str, ModelConfig]:
    """Return the job's model, and the dense model with the same active matrix FLOPs."""
    mixture = job.model_config_resolved()
    experts = mixture.experts
    assert experts is not None
    d_ff = experts.top_k * mixture.d_ff + experts.shared * experts.d_shared
    return {
        "dense": dataclasses.replace(mixture, d_ff=d_ff, experts=None),
        "experts": mixture,
    }


def make_trainer(config: ModelConfig, job: Job) -> Trainer:
    """Return a trainer of `config` with the settings of the job's pretraining."""
    assert job.pretrain is not None
    torch.manual_seed(0)
    rows = STEP_TOKENS // config.seq_len
    settings = dataclasses.replace(settings_of(job.pretrain), steps=10**9, global_batch=rows)
    micro_batch = MICRO_BATCH_TOKENS // config.seq_len
    plan = ComputePlan(dtype="bfloat16", micro_batch=micro_batch, threads=torch.get_num_threads())
    stream: Any = RandomRows(config.vocab_size, config.seq_len)
    return Trainer(Decoder(config), stream, settings, plan)


def step_seconds(trainer: Trainer) -> float:
    """Return the seconds of one step."""
    started = time.perf_counter()
    trainer.train_step()
    return time.perf_counter() - started


def update_seconds(trainer: Trainer) -> float:
    """Return the seconds of one update of the weights, which is a part of every step."""
    for parameter in trainer.model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    started = time.perf_counter()
    trainer.optimizer.step(plan_at(trainer.settings, trainer.step))
    seconds = time.perf_counter() - started
    trainer.optimizer.zero_grad()
    return seconds


def operations(trainer: Trainer) -> dict[str, float]:
    """Return the milliseconds a step spends in its most expensive operations."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        for _ in range(PROFILED_STEPS):
            trainer.train_step()
    spent = {row.key: row.self_cpu_time_total for row in profiled.key_averages()}
    most = sorted(spent, key=lambda name: -spent[name])[:OPERATIONS_SHOWN]
    return {name: round(spent[name] / 1000 / PROFILED_STEPS, 1) for name in most}


def compare(trainers: dict[str, Trainer], rounds: int) -> dict[str, dict[str, Any]]:
    """Return each model's speed, update time and profile, and the ratio to the first one's speed.

    The trainers are closed.
    """
    steps: dict[str, list[float]] = {name: [] for name in trainers}
    updates: dict[str, list[float]] = {name: [] for name in trainers}
    for number in range(WARMUP_STEPS + rounds):
        for name, trainer in trainers.items():
            step, update = step_seconds(trainer), update_seconds(trainer)
            if number >= WARMUP_STEPS:
                steps[name].append(step)
                updates[name].append(update)
    first, report = next(iter(steps.values())), {}
    for name, trainer in trainers.items():
        ratios = [theirs / own for theirs, own in zip(first, steps[name], strict=True)]
        cost = cost_of(trainer.model.config)
        report[name] = {
            "params": cost.all_params,
            "macs_per_token": cost.macs_per_token,
            "tokens_per_second": round(STEP_TOKENS / statistics.median(steps[name])),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
            "update_seconds": round(statistics.median(updates[name]), 4),
            "operations_ms_per_step": operations(trainer),
        }
        trainer.close()
    return report


def compare_shape(shape: str, pairs: int) -> dict[str, Any]:
    """Return the measures of the mixture of experts and of its dense model."""
    job = load_job(ROOT / "jobs" / JOBS[shape])
    trainers = {name: make_trainer(config, job) for name, config in models_of(job).items()}
    return {"pairs": pairs, **compare(trainers, pairs)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--shapes", nargs="+", choices=JOBS, default=list(JOBS))
    options = parser.parse_args()
    report: dict[str, Any] = {
        "device": device_name(torch.device("cpu")),
        "load_average_before": round(os.getloadavg()[0], 2),
        "tokens_per_step": STEP_TOKENS,
    }
    for shape in options.shapes:
        report[shape] = compare_shape(shape, options.pairs)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
