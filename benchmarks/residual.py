"""Does a residual stream in bfloat16 learn as well as one in float32? Paired seeds decide.

    uv run python -m benchmarks.residual [--seeds 10] [--steps 160] [--out FILE]

The model is the Pion 2 of jobs/demo-prefer.yaml, on the demo's text, computed in bf16 on this CPU.
For each seed, two models train on the same rows in the same order from the same weights, each in
its own process. They differ in `hardware.residual` alone. Then held-out text is scored as in the
evaluate stage, in fp32.

The rule was fixed before the first seed: `hardware.residual: auto` becomes bfloat16 if, of ten
seeds, the upper end of the 95 % interval (Student's t) of the mean difference, bfloat16 minus
float32, is below 0.010 bits per byte.

What is measured is kept in FILE after each model (benchmarks/results/residual.json), so the same
command continues an experiment that was cut short; the code must be the same. A CPU rounds as a GPU
does between blocks, but the experiment is of a small model.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from scipy.stats import t as student

from benchmarks import paired_training
from benchmarks.paired_training import Dtype
from pion.files import write_atomically
from pion.train.hardware import device_name
from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.stages.prepare import prepare_pretrain

RESULT = Path(__file__).parent / "results" / "residual.json"
JOB = Path(__file__).parent.parent / "jobs" / "demo-prefer.yaml"
RESIDUALS: tuple[Dtype, ...] = get_args(Dtype)  # float32 first
SEEDS, STEPS = 10, 160
# In bits per byte.
MOST_WORSE = 0.010
SHARE = 0.95


def job_of(steps: int) -> Job:
    """Return the job that both models train."""
    return load_job(JOB, [f"pretrain.steps={steps}"])


def train(residual: Dtype, steps: int, seed: int, data: Path) -> dict[str, Any]:
    """Train one model on the prepared `data`, and return its measures."""
    job = job_of(steps)
    config = job.model_config_resolved()
    return paired_training.train(job, config, seed, data, "bfloat16", residual)


# ---------------------------------------------------------------- all models

# By residual stream, the bits per byte of each seed.
Measured = dict[str, list[float]]


def run_all(out: Path, steps: int, seeds: int) -> Measured:
    """Return the bits per byte of each model. What the file `out` has is not measured again."""
    measured = kept(out, steps)
    if all(len(found) >= seeds for found in measured.values()):
        return measured
    with tempfile.TemporaryDirectory() as folder:
        prepare_pretrain(job_of(steps), Path(folder), lambda message: None)
        for seed in range(seeds):
            for residual in RESIDUALS:
                if len(measured[residual]) > seed:
                    continue
                command = [sys.executable, "-m", "benchmarks.residual", "--steps", str(steps)]
                command += ["--train", residual, str(seed), folder]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                print(f"seed {seed}, {residual}: {done.stdout.strip()}", flush=True)
                measured[residual].append(json.loads(done.stdout)["bits_per_byte"])
                write(out, report(measured, steps))
    return measured


def kept(out: Path, steps: int) -> Measured:
    """Return what the file has of an experiment with as many steps, on this torch."""
    found = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    same = found.get("steps") == steps and found.get("torch") == torch.__version__
    measured: Measured = found.get("bits_per_byte", {}) if same else {}
    return {residual: measured.get(residual, []) for residual in RESIDUALS}


def report(measured: Measured, steps: int) -> dict[str, Any]:
    """Return what the file has: each seed's measures, and the verdict once there are enough."""
    return {
        "device": device_name(torch.device("cpu")),
        "torch": torch.__version__,
        "steps": steps,
        "bits_per_byte": measured,
        "verdict": verdict(measured["bfloat16"], measured["float32"]),
    }


def verdict(rounded: Sequence[float], exact: Sequence[float]) -> dict[str, Any] | None:
    """Return the mean paired difference, its interval, and what `auto` should be.

    With fewer pairs than SEEDS, `auto` is float32 whatever they say. None: there is no interval of
    fewer than two pairs.
    """
    pairs = list(zip(rounded, exact, strict=False))
    if len(pairs) < 2:
        return None
    differences = [a - b for a, b in pairs]
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    reach = float(student.ppf((1 + SHARE) / 2, len(differences) - 1)) * error
    as_good = len(pairs) >= SEEDS and mean + reach < MOST_WORSE
    return {
        "pairs": len(pairs),
        "difference": round(mean, 5),
        "interval": [round(mean - reach, 5), round(mean + reach, 5)],
        "auto": "bfloat16" if as_good else "float32",
    }


def write(out: Path, content: dict[str, Any]) -> None:
    """Replace the file at once, so that a kill leaves what was there."""
    write_atomically(out, (json.dumps(content, indent=1) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS, help="more than 5, which warm up")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--train", nargs=3, metavar=("RESIDUAL", "SEED", "DATA"))
    options = parser.parse_args()
    if options.train:
        residual, seed, data = options.train
        print(json.dumps(train(residual, options.steps, int(seed), Path(data))))
        return
    measured = run_all(options.out, options.steps, options.seeds)
    print(json.dumps(report(measured, options.steps)["verdict"], indent=1))


if __name__ == "__main__":
    main()
