"""Compare the speed of layers of primitives with dense layers of the same shape.

    uv run python -m benchmarks.primitive_speed [--rounds 10] [--compiled]

The shape, the optimizer and the settings are those of jobs/demo-pilon.yaml: 4 layers of d_model 256
and d_ff 1,024. `dense` has squared ReLU between its two matrices; `compositional` has primitives in
their place; `ternary` has ternary primitives, rounded activations and a sub-norm, as in the job;
`full mix` is `compositional` with all primitives in each recipe.

A step is 16,384 tokens in bf16, in micro-batches of 4,096 tokens, optimizer included. Steps are
timed in turn in one process, so that other load on the machine affects all alike. A ratio is the
median over rounds of a model's speed and the dense one's. Then a few steps of each are profiled, by
operation. Writes benchmarks/results/primitive_speed.json, in which eager and compiled runs have
their own entries.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.expert_speed import STEP_TOKENS, compare, make_trainer
from pion.config.model_config import ModelConfig
from pion.train.hardware import device_name
from pipeline.job.file import load_job

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "primitive_speed.json"
JOB = ROOT / "jobs" / "demo-pilon.yaml"


def models_of(ternary: ModelConfig) -> dict[str, ModelConfig]:
    """Return the models to compare, by name; the job's model is the ternary one."""
    primitives = ternary.primitives
    assert primitives is not None
    plain = dataclasses.replace(primitives, ternary=False, activation_bits=0, sub_norm=False)
    mixed = dataclasses.replace(plain, top_k=plain.n)
    return {
        "dense": dataclasses.replace(ternary, primitives=None),
        "compositional": dataclasses.replace(ternary, primitives=plain),
        "ternary": ternary,
        "full mix": dataclasses.replace(ternary, primitives=mixed),
    }


def compare_models(rounds: int, compiled: bool) -> dict[str, Any]:
    """Return the measures of each model."""
    # Phases would freeze what a step updates, or forbid sizes that a dense model does not have.
    job = load_job(JOB, ["pretrain.phases=[]"])
    models = models_of(job.model_config_resolved())
    load = round(os.getloadavg()[0], 2)
    trainers = {name: make_trainer(config, job) for name, config in models.items()}
    for trainer in trainers.values():
        trainer.plan = dataclasses.replace(trainer.plan, compile=compiled)
    return {"load_average_before": load, "rounds": rounds, "models": compare(trainers, rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--compiled", action="store_true", help="compile the blocks")
    options = parser.parse_args()
    report = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    report["device"] = device_name(torch.device("cpu"))
    report["tokens_per_step"] = STEP_TOKENS
    report["compiled" if options.compiled else "eager"] = compare_models(
        options.rounds, options.compiled
    )
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
