"""Race training recipes: bits per byte at equal tokens and at equal FLOPs of matrices.

    uv run python -m benchmarks.recipes [--sizes l …] [--arms B C …] [--seeds 5] [--nanochat PATH]

All arms train on the prose and the source of Python's standard library, with the vocabulary of
jobs/demo.yaml. For each seed they see the same rows in the same order, in bf16. An arm whose model
has fewer multiplications a token than the demo's trains for as many more steps in its race at equal
FLOPs. What is measured is kept in benchmarks/results/recipes.json after each training, so the same
command continues a race that was cut short; the code must be the same.

With --nanochat, a checkout of karpathy/nanochat, its own model and optimizer race, too, with the
rates of its rules and with multiples of them.

A rate is a factor of the size: AdamW's rates for embeddings, head and vectors are given for a
d_model of 768, and grow with (d_model / 768)^-½.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import nanochat_rival
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
# What `paired` needs to tell a real difference.
SEEDS = 5
# As on a GPU; nanochat's code computes in it, too.
DTYPE: Literal["bfloat16"] = "bfloat16"
Settings = dict[str, Any]
Run = tuple[str, str, int, int]  # size, arm, steps and seed
Measures = dict[str, float]


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
# nanochat's own model and optimizer, and the factor of the rates that its rules give.
RIVALS = {
    "N nanochat": 1.0,
    "N nanochat · 2": 2.0,
    "N nanochat · 4": 4.0,
    "N nanochat · 8": 8.0,
    "N nanochat · 16": 16.0,
}


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
    config = job_of(size, FIRST if arm in RIVALS else arm, 100).model_config_resolved()
    if arm in RIVALS:
        return nanochat_rival.macs(config.d_model, config.n_layers, config.vocab_size)
    return cost_of(config).macs_per_token


def steps_of(size: str, arm: str, *, equal_flops: bool) -> int:
    """Return the steps of an arm in one of its two races."""
    steps = STEPS * macs(size, FIRST) / macs("l", FIRST)
    return round(steps * macs(size, FIRST) / macs(size, arm) if equal_flops else steps)


def race(sizes: list[str], arms: list[str], seeds: int, checkout: str | None) -> dict[str, Any]:
    """Train what is missing, and return the report. `checkout` is nanochat's."""
    report: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    with tempfile.TemporaryDirectory() as folder:
        prepare_pretrain(job_of("l", FIRST, 100), Path(folder), lambda message: None)
        for seed in range(seeds):
            for size in sizes:
                missing = [
                    (size, arm, steps, seed)
                    for arm in arms
                    for steps in sorted({steps_of(size, arm, equal_flops=e) for e in (False, True)})
                    if key_of(size, arm, steps, seed) not in report["runs"]
                ]
                for run, measures in trained(missing, Path(folder), checkout):
                    report["runs"][key_of(*run)] = measures
                    print(f"{key_of(*run)}: {measures}", flush=True)
                    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    return report


def key_of(size: str, arm: str, steps: int, seed: int | str) -> str:
    """Return the name of a training in the report."""
    return f"{size}, {arm}, {steps} steps, seed {seed}"


def trained(runs: list[Run], data: Path, checkout: str | None) -> Iterator[tuple[Run, Measures]]:
    """Yield each run with its measures. All are trained in one other process."""
    if not runs:
        return
    command = [sys.executable, "-m", "benchmarks.recipes", "--train", json.dumps(runs), str(data)]
    command += ["--nanochat", checkout] if checkout else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for run, line in zip(runs, process.stdout):
            yield run, json.loads(line)
    if process.returncode:
        raise SystemExit(f"a training ended with {process.returncode}")


def summary(runs: Mapping[str, Mapping[str, float]], size: str) -> list[dict[str, Any]]:
    """Return both races of a size: each arm, and its paired difference from the demo's Muon."""

    def bits(arm: str, steps: int) -> dict[str, float]:
        begin = key_of(size, arm, steps, "")
        return {
            key.removeprefix(begin): run["bits_per_byte"]
            for key, run in runs.items()
            if key.startswith(begin)
        }

    rows = []
    first = bits(FIRST, steps_of(size, FIRST, equal_flops=False))
    for arm in (*ARMS, *RIVALS):
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
                if len(both) < SEEDS:  # so few can't say that a difference is real
                    del row["real"]
            rows.append(row)
    return rows


def _train(run: Run, data: Path, checkout: str | None) -> Measures:
    size, arm, steps, seed = run
    job = job_of(size, FIRST if arm in RIVALS else arm, steps)
    config = job.model_config_resolved()
    if arm in RIVALS:
        assert checkout is not None
        with contextlib.redirect_stdout(sys.stderr):  # nanochat prints
            return nanochat_rival.train(job, config, seed, data, Path(checkout), RIVALS[arm])
    measures = train(job, config, seed, data, DTYPE)
    return {name: measures[name] for name in ("bits_per_byte", "bits_per_byte_sem")}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["l"])
    parser.add_argument("--arms", nargs="+", choices=[*ARMS, *RIVALS], default=None)
    parser.add_argument("--nanochat", metavar="PATH", help="a checkout of karpathy/nanochat")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--train", nargs=2, metavar=("RUNS", "DATA"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        for run in json.loads(options.train[0]):
            print(json.dumps(_train(run, Path(options.train[1]), options.nanochat)), flush=True)
        return
    arms = options.arms or [*ARMS, *(RIVALS if options.nanochat else ())]
    if set(arms) & RIVALS.keys() and not options.nanochat:
        parser.error("nanochat's arms need --nanochat PATH, a checkout of karpathy/nanochat")
    report = race(options.sizes, arms, options.seeds, options.nanochat)
    report["device"] = device_name(torch.device("cpu"))
    report["dtype"] = DTYPE
    report["summary"] = [row for size in SIZES for row in summary(report["runs"], size)]
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["summary"], indent=1))


if __name__ == "__main__":
    main()
