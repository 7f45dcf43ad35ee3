"""Race training recipes: bits per byte at equal tokens and at equal FLOPs of matrices.

    uv run python -m benchmarks.recipes [--sizes l …] [--arms B C …] [--seeds 5]

All arms train on the prose and the source of Python's standard library, with the vocabulary of
jobs/demo.yaml. For each seed they see the same rows in the same order, in fp32. An arm whose model
has fewer multiplications a token than the demo's trains for as many more steps in its race at equal
FLOPs. What is measured is kept in benchmarks/results/recipes.json after each training, so the same
command continues a race that was cut short; the code must be the same.

A rate is a factor of the size: AdamW's rates for embeddings, head and vectors are given for a
d_model of 768, and grow with (d_model / 768)^-½.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.paired_training import paired, train
from pion.model.params_and_flops import cost_of
from pion.train.hardware import device_name
from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.stages.prepare import prepare_pretrain

RESULTS = Path(__file__).parent / "results" / "recipes.json"
JOB = Path(__file__).parent.parent / "jobs" / "demo.yaml"
TEXT = ["data.sources=[{kind: python-docs, code: true}]", "sft=null", "evaluate.final_rows=400"]

# By name, d_model, n_layers, n_heads, n_kv_heads and d_ff of the demo's model and of smaller ones:
# 0.6, 1.0, 2.4 and 5.0 million multiplications a token.
SIZES = {
    "xs": (128, 2, 2, 1, 352),
    "s": (128, 4, 2, 1, 352),
    "m": (192, 5, 3, 1, 512),
    "l": (256, 6, 4, 2, 704),
}
# The steps of the demo's model; smaller ones have steps in proportion to their multiplications.
STEPS = 720
Settings = dict[str, Any]


def adamw(lr: float) -> Callable[[int, int], Settings]:
    """Return the recipe of pion-*: AdamW on all, with the defaults of a job but for its rate."""
    return lambda d_model, steps: {
        "lr": lr,
        "min_lr": lr / 10,
        "optimizer": "adamw",
        "warmup_steps": max(1, steps // 10),
        "decay_shape": "cosine",
        "decay_fraction": 0.2,
    }


def muon(muon_lr: float) -> Callable[[int, int], Settings]:
    """Return the recipe of jobs/demo.yaml, which the base of all jobs here has, with a rate."""
    return lambda d_model, steps: {"muon_lr": muon_lr, "warmup_steps": max(1, steps // 48)}


def pion2(**changes: Any) -> Callable[[int, int], Settings]:
    """Return the rates of Pion 2, with changes."""

    def recipe(d_model: int, steps: int) -> Settings:
        factor = (d_model / 768) ** -0.5
        return {
            "optimizer": "muon",
            "muon_lr": 0.02,
            "lr": 3e-3 * factor,
            "head_lr": 3e-3 * factor,
            "embedding_lr": 0.1 * factor,
            "vector_lr": 0.01 * factor,
            "min_lr": 0.05 * 3e-3 * factor,
            "warmup_steps": max(1, min(40, steps // 12)),
            "decay_shape": "linear",
            "decay_fraction": 0.65,
            "weight_decay": 0.0,
            "beta1": 0.8,
            "beta2": 0.95,
            "eps": 1e-10,
        } | changes

    return recipe


def wide_heads(d_model: int, n_layers: int) -> Settings:
    """Return Pion 2's model: few wide heads, one for keys and values, and an untied head."""
    heads = max(1, round(d_model / 128))
    return {
        "n_heads": heads,
        "n_kv_heads": 1,
        "head_dim": 128,
        "init": "zero_outputs",
        "tie_embeddings": False,
        "rope_theta": 100_000,
    }


def most(d_model: int, n_layers: int) -> Settings:
    """Return the model of Pion 2 Max, which needs modelling files."""
    return wide_heads(d_model, n_layers) | {
        "activation": "relu2",
        "norm_gain": False,
        "logit_cap": 15,
        "heads": {"scale": 0.1273},
        "wiring": {"embed_norm": True, "input_mix": True},
        "values": {"layers": list(range(1, n_layers, 2))},
    }


def without(*names: str) -> Callable[[int, int], Settings]:
    """Return Pion 2's model without some of its changes."""
    return lambda d_model, n_layers: {
        name: value for name, value in wide_heads(d_model, n_layers).items() if name not in names
    }


def demo(d_model: int, n_layers: int) -> Settings:
    """Return no change of the demo's model."""
    return {}


Arm = tuple[Callable[[int, int], Settings], Callable[[int, int], Settings], bool]
# The model, the settings of training, and whether documents are kept apart.
ARMS: dict[str, Arm] = {
    "A0 adamw 3e-4": (demo, adamw(3e-4), False),
    "A1 adamw 1e-3": (demo, adamw(1e-3), False),
    "A1 adamw 3e-3": (demo, adamw(3e-3), False),
    "A1 adamw 1e-2": (demo, adamw(1e-2), False),
    "B muon": (demo, muon(0.02), False),
    "B muon 0.01": (demo, muon(0.01), False),
    "B muon 0.04": (demo, muon(0.04), False),
    "C pion 2": (wide_heads, pion2(), True),
    "C muon_lr 0.01": (wide_heads, pion2(muon_lr=0.01), True),
    "C muon_lr 0.04": (wide_heads, pion2(muon_lr=0.04), True),
    "C embedding_lr / 3": (wide_heads, pion2(embedding_lr=0.06), True),
    "C embedding_lr · 3": (wide_heads, pion2(embedding_lr=0.5), True),
    "C documents together": (wide_heads, pion2(), False),
    "C normal init": (without("init"), pion2(), True),
    "C tied head": (without("tie_embeddings"), pion2(), True),
    "C narrow heads": (without("n_heads", "n_kv_heads", "head_dim"), pion2(), True),
    "C rope_theta 10000": (without("rope_theta"), pion2(), True),
    "C weight_decay 0.1": (wide_heads, pion2(weight_decay=0.1), True),
    "C beta1 0.9": (wide_heads, pion2(beta1=0.9), True),
    "D max": (most, pion2(), True),
}
FIRST = "B muon"


def job_of(size: str, arm: str, steps: int) -> Job:
    """Return the job of an arm."""
    d_model, n_layers, n_heads, n_kv_heads, d_ff = SIZES[size]
    of_model, of_training, documents = ARMS[arm]
    shape = {"d_model": d_model, "n_layers": n_layers, "d_ff": d_ff}
    model = shape | {"n_heads": n_heads, "n_kv_heads": n_kv_heads} | of_model(d_model, n_layers)
    training = {"steps": steps} | of_training(d_model, steps)
    given = {f"model.{name}": value for name, value in model.items()}
    given |= {f"pretrain.{name}": value for name, value in training.items()}
    changes = [f"{name}={json.dumps(value)}" for name, value in given.items()]
    return load_job(JOB, [*TEXT, *changes, f"data.documents={json.dumps(documents)}"])


def macs(size: str, arm: str) -> int:
    """Return the multiply-accumulates with weights for a token."""
    return cost_of(job_of(size, arm, 100).model_config_resolved()).macs_per_token


def steps_of(size: str, arm: str, *, equal_flops: bool) -> int:
    """Return the steps of an arm in one of its two races."""
    steps = STEPS * macs(size, FIRST) / macs("l", FIRST)
    return round(steps * macs(size, FIRST) / macs(size, arm) if equal_flops else steps)


def race(sizes: list[str], arms: list[str], seeds: int) -> dict[str, Any]:
    """Train what is missing, and return the report."""
    report: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    with tempfile.TemporaryDirectory() as folder:
        prepare_pretrain(job_of("l", FIRST, 100), Path(folder), lambda message: None)
        for seed in range(seeds):
            for size in sizes:
                for arm in arms:
                    for steps in sorted(
                        {steps_of(size, arm, equal_flops=equal) for equal in (False, True)}
                    ):
                        key = f"{size}, {arm}, {steps} steps, seed {seed}"
                        if key in report["runs"]:
                            continue
                        command = [sys.executable, "-m", "benchmarks.recipes", "--train", size, arm]
                        command += [str(steps), str(seed), folder]
                        done = subprocess.run(
                            command, stdout=subprocess.PIPE, text=True, check=True
                        )
                        report["runs"][key] = json.loads(done.stdout)
                        print(f"{key}: {done.stdout.strip()}", flush=True)
                        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    return report


def summary(runs: Mapping[str, Mapping[str, float]], size: str) -> list[dict[str, Any]]:
    """Return both races of a size: each arm, and its paired difference from the demo's Muon."""

    def bits(arm: str, steps: int) -> dict[str, float]:
        begin = f"{size}, {arm}, {steps} steps, seed "
        return {
            key.removeprefix(begin): run["bits_per_byte"]
            for key, run in runs.items()
            if key.startswith(begin)
        }

    rows = []
    first = bits(FIRST, steps_of(size, FIRST, equal_flops=False))
    for arm in ARMS:
        for equal, race_of in ((False, "tokens"), (True, "FLOPs")):
            steps = steps_of(size, arm, equal_flops=equal)
            own = bits(arm, steps)
            both = sorted(own.keys() & first.keys())
            if not both:
                continue
            row: dict[str, Any] = {"size": size, "arm": arm, "equal": race_of, "steps": steps}
            row |= {"seeds": len(both), "bits_per_byte": round(statistics.mean(own.values()), 4)}
            if len(both) > 1 and arm != FIRST:
                row |= paired([own[seed] for seed in both], [first[seed] for seed in both])
            rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["l"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--train", nargs=5, metavar=("SIZE", "ARM", "STEPS", "SEED", "DATA"))
    options = parser.parse_args()
    if options.train:
        size, arm, steps, seed, data = options.train
        job = job_of(size, arm, int(steps))
        config = job.model_config_resolved()
        print(json.dumps(train(job, config, int(seed), Path(data), "float32")))
        return
    report = race(options.sizes, options.arms, options.seeds)
    report["device"] = device_name(torch.device("cpu"))
    report["load_average_after"] = round(os.getloadavg()[0], 2)
    report["summary"] = [row for size in SIZES for row in summary(report["runs"], size)]
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["summary"], indent=1))


if __name__ == "__main__":
    main()
