"""Compare what families learn and cost, on the demo's text: two groups of models.

    uv run python -m benchmarks.families [families | pilon] [--steps 240] [--seeds 5]

`families`: dense Pion, Tachyon and Daisy-Wee. Each has the same active matrix FLOPs a token within
0.3 %, and trains with the settings of its demo. `pilon`: the shape and settings of
jobs/demo-pilon.yaml with dense feed-forward layers, with primitives, with ternary ones, and with
all of its recipe; and a model with primitives that trains for as many more steps as its cheaper
arithmetic allows. For each seed, all models train on the same rows in the same order, one after
the other, each in its own process, in bf16. Then held-out text is scored as in the evaluate stage,
in fp32. `tachyon, balance per step` differs from `tachyon` only in its balance loss: over all rows
of a step, in place of each row.

A difference from the first model, or of the two balance losses, is the mean over seeds of paired
differences. It counts as real where |t| > 2.8, which is p < 0.05 for five seeds. Peak memory is the
resident peak of a process minus what was resident after the imports (Linux). Each group has its
own file in benchmarks/results/. What is measured is kept there after each model, so the same
command continues a comparison that was cut short; the code must be the same.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import paired_training
from benchmarks.paired_training import paired
from pion.config.model_config import ModelConfig
from pion.model.params_and_flops import cost_of
from pion.train.hardware import device_name
from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.stages.prepare import prepare_pretrain

RESULTS = Path(__file__).parent / "results"
JOBS = Path(__file__).parent.parent / "jobs"
# Of the job of PILON's demo: dense layers, and primitives without the rest of the recipe.
DENSE = ["model.primitives=null", "pretrain.phases=[]", "model.activation=gelu"]
PLAIN = ["model.primitives.sub_norm=false", "model.activation=gelu"]
FLOAT = ["model.primitives.ternary=false", "model.primitives.activation_bits=0"]
# By group, the job of each model and what is changed in it. The first is what others are compared
# with.
GROUPS: dict[str, dict[str, tuple[str, list[str]]]] = {
    "families": {
        "dense": ("../benchmarks/demo_muon.yaml", []),
        "tachyon": ("demo-tachyon.yaml", []),
        "tachyon, balance per step": ("demo-tachyon.yaml", []),
        "daisy": ("demo-daisy.yaml", ["model.d_ff=1096"]),
    },
    "pilon": {
        "dense layers": ("demo-pilon.yaml", DENSE),
        "compositional": ("demo-pilon.yaml", [*FLOAT, *PLAIN]),
        "compositional, equal multiplications": ("demo-pilon.yaml", [*FLOAT, *PLAIN]),
        "ternary": ("demo-pilon.yaml", PLAIN),
        "ternary, sub-norm, relu2": ("demo-pilon.yaml", []),
    },
}
MODELS = {name: model for group in GROUPS.values() for name, model in group.items()}
PER_STEP = "tachyon, balance per step"
# Trained for as many multiply-accumulates as the second model.
EQUAL_MACS = {"compositional, equal multiplications": "dense layers"}
# Other pairs to compare, besides each model and the first of its group.
ALSO_COMPARED = {
    PER_STEP: "tachyon",
    "ternary": "compositional",
    "ternary, sub-norm, relu2": "ternary",
}
MOST_FLOPS_APART = 0.003


def job_of(name: str, steps: int) -> Job:
    """Return the job of the named model, with `steps` steps of pretraining."""
    file, overrides = MODELS[name]
    return load_job(JOBS / file, [*overrides, f"pretrain.steps={steps_of(name, steps)}"])


def steps_of(name: str, steps: int) -> int:
    """Return how many steps the named model trains for, if the first one trains for `steps`."""
    if name not in EQUAL_MACS:
        return steps
    file, overrides = MODELS[name]
    own = load_job(JOBS / file, overrides).model_config_resolved()
    other = job_of(EQUAL_MACS[name], steps).model_config_resolved()
    return round(steps * cost_of(other).macs_per_token / cost_of(own).macs_per_token)


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
    job = job_of(name, steps)
    return paired_training.train(job, config_of(name, job), seed, data, "bfloat16")


# ---------------------------------------------------------------- all models


Measures = dict[str, dict[str, list[float]]]


def run_all(group: str, steps: int, seeds: int) -> Measures:
    """Return every measure of every model, a value for each seed.

    What the group's file already has is not measured again.
    """
    models = GROUPS[group]
    measures: Measures = _measured(group, steps)
    with tempfile.TemporaryDirectory() as folder:
        prepare_pretrain(job_of(next(iter(models)), steps), Path(folder), lambda message: None)
        for seed in range(seeds):
            for name in models:
                if len(measures[name].get("bits_per_byte", ())) > seed:
                    continue
                command = [sys.executable, "-m", "benchmarks.families", "--steps", str(steps)]
                command += ["--train", name, str(seed), folder]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                print(f"seed {seed}, {name}: {done.stdout.strip()}", flush=True)
                for measure, value in json.loads(done.stdout).items():
                    measures[name].setdefault(measure, []).append(value)
                _write(group, {"steps": steps, "measures": measures})
    return measures


def _measured(group: str, steps: int) -> Measures:
    """Return what the group's file has of an unfinished comparison."""
    file = RESULTS / f"{group}.json"
    report = json.loads(file.read_text()) if file.exists() else {}
    kept: Measures = report.get("measures", {}) if report.get("steps") == steps else {}
    return {name: kept.get(name, {}) for name in GROUPS[group]}


def _write(group: str, report: dict[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{group}.json").write_text(json.dumps(report, indent=1) + "\n")


def summary(group: str, measures: Measures, steps: int) -> dict[str, Any]:
    """Return the measures of each model, next to those of the first."""
    first = next(iter(GROUPS[group]))
    baseline = measures[first]
    models = {}
    for name, own in measures.items():
        cost = cost_of(config_of(name, job_of(name, steps)))
        speeds = zip(own["tokens_per_second"], baseline["tokens_per_second"], strict=True)
        models[name] = {
            "steps": steps_of(name, steps),
            "params": cost.all_params,
            "active_params": cost.active_params,
            "macs_per_token": cost.macs_per_token,
            "bits_per_byte": round(statistics.mean(own["bits_per_byte"]), 4),
            "bits_per_byte_of_seeds": [round(value, 4) for value in own["bits_per_byte"]],
            "tokens_per_second": round(statistics.median(own["tokens_per_second"])),
            "speed_ratio": round(statistics.median(a / b for a, b in speeds), 3),
            "peak_mib": round(statistics.median(own["peak_mib"])),
        }
        for other in dict.fromkeys((first, ALSO_COMPARED.get(name, first))):
            if other != name:
                difference = paired(own["bits_per_byte"], measures[other]["bits_per_byte"])
                models[name][f"from {other}"] = difference
    return models


def check_equal_flops(steps: int) -> None:
    """Raise SystemExit unless all families have the same active matrix FLOPs a token."""
    names = GROUPS["families"]
    macs = {name: cost_of(config_of(name, job_of(name, steps))).macs_per_token for name in names}
    least, most = min(macs.values()), max(macs.values())
    if most > least * (1 + MOST_FLOPS_APART):
        raise SystemExit(f"not the same FLOPs: multiply-accumulates a token are {macs}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("group", nargs="?", choices=GROUPS, default="families")
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--train", nargs=3, metavar=("MODEL", "SEED", "DATA"))
    options = parser.parse_args()
    if options.train:
        name, seed, data = options.train
        print(json.dumps(train(name, options.steps, int(seed), Path(data))))
        return
    check_equal_flops(options.steps)
    load = round(os.getloadavg()[0], 2)
    measures = run_all(options.group, options.steps, options.seeds)
    report = {
        "device": device_name(torch.device("cpu")),
        "load_average_before": load,
        "steps": options.steps,
        "seeds": options.seeds,
        "models": summary(options.group, measures, options.steps),
    }
    _write(options.group, report)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
