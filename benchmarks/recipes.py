"""Race training recipes: bits per byte at equal tokens and at equal FLOPs of matrices.

    uv run python -m benchmarks.recipes [--sizes l …] [--arms B C …] [--seeds 5] [--nanochat PATH]

All arms train on the source files of Python's standard library, less than once, with a vocabulary
of their own. For each seed they see the same rows in the same order, in bf16, and all held-out rows
are scored. An arm whose model has fewer multiplications a token than the demo's trains for as many
more steps in its race at equal FLOPs. What is measured is kept in benchmarks/results/recipes.json
after each training, so the same command continues a race that was cut short; the code must be the
same.

With --nanochat, a checkout of karpathy/nanochat, its own model and optimizer race, too, with the
rates of its rules and with multiples of them.

The arms are in benchmarks/recipe_arms.py.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import nanochat_rival
from benchmarks.paired_training import paired, train
from benchmarks.recipe_arms import (
    ARMS,
    BATCH_TOKENS,
    FIRST,
    RIVALS,
    SIZES,
    job_of,
    macs,
    steps_of,
    write_text,
)
from benchmarks.recipe_scaling import scaling
from pion.train.hardware import device_name
from pipeline.ladder.points import training_flops
from pipeline.stages.prepare import prepare_pretrain

RESULTS = Path(__file__).parent / "results" / "recipes.json"
# What `paired` needs to tell a real difference.
SEEDS = 5
# As on a GPU; nanochat's code computes in it, too.
DTYPE: Literal["bfloat16"] = "bfloat16"
# The recipes whose gains are followed over the sizes.
COMPARED = (FIRST, "C pion 2", "D max")
MOST_SEEDS = 10
RACES = {"tokens": False, "FLOPs": True}
Run = tuple[str, str, int, int]  # size, arm, steps and seed
Measures = dict[str, float]


def race(
    sizes: list[str], arms: list[str], races: list[str], seeds: int, checkout: str | None
) -> None:
    """Train what is missing, and keep each result. `checkout` is nanochat's."""
    with tempfile.TemporaryDirectory() as folder:
        write_text()
        prepare_pretrain(job_of("l", FIRST, 100), Path(folder), lambda message: None)
        for seed, size in itertools.product(range(seeds), sizes):
            done = read()["runs"]
            missing = [
                (size, arm, steps, seed)
                for arm in arms
                for steps in sorted(
                    {steps_of(size, arm, equal_flops=RACES[race]) for race in races}
                )
                if key_of(size, arm, steps, seed) not in done
            ]
            for run, measures in trained(missing, Path(folder), checkout):
                print(f"{key_of(*run)}: {measures}", flush=True)
                keep(key_of(*run), measures)


def read() -> dict[str, Any]:
    """Return the report as it is now."""
    text = RESULTS.read_text() if RESULTS.exists() else ""
    return json.loads(text) if text else {"runs": {}}


def keep(name: str, measures: Measures) -> None:
    """Write a training into the report. Two commands can race different arms at the same time."""
    _change(lambda report: report["runs"].update({name: measures}))


def _change(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    with RESULTS.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        report = read()
        change(report)
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    return report


def summarize() -> list[dict[str, Any]]:
    """Write the summary of all trainings into the report, and return it."""
    rows = [row for size in SIZES for row in summary(read()["runs"], size)]
    found: dict[str, Any] = {
        "device": device_name(torch.device("cpu")),
        "dtype": DTYPE,
        "summary": rows,
    }
    found["scaling"] = scaling_of(read()["runs"])
    return list(_change(lambda report: report.update(found))["summary"])


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
        for equal, equal_flops in RACES.items():
            steps = steps_of(size, arm, equal_flops=equal_flops)
            own = bits(arm, steps)
            both = sorted(own.keys() & first.keys())
            if not both:
                continue
            row: dict[str, Any] = {"size": size, "arm": arm, "equal": equal, "steps": steps}
            row |= {"seeds": len(both), "bits_per_byte": round(statistics.mean(own.values()), 4)}
            if arm != FIRST:
                row |= _compared([own[seed] for seed in both], [first[seed] for seed in both])
            rows.append(row)
    return rows


def _compared(these: Sequence[float], others: Sequence[float]) -> dict[str, Any]:
    """Return the mean difference, and what the seeds suffice to say about its noise."""
    if len(these) == 1:
        return {"difference": round(these[0] - others[0], 4)}
    found = paired(these, others)
    if len(these) < SEEDS:  # so few can't say that a difference is real
        del found["real"]
    return found


def scaling_of(runs: Mapping[str, Mapping[str, float]]) -> dict[str, Any] | None:
    """Return how the gains change with compute, at equal FLOPs; None while a size is missing."""
    found: dict[str, dict[str, list[float]]] = {}
    for arm in COMPARED:
        steps = {size: steps_of(size, arm, equal_flops=True) for size in SIZES}
        of_seeds = {
            seed: [runs.get(key_of(size, arm, steps[size], seed)) for size in SIZES]
            for seed in map(str, range(MOST_SEEDS))
        }
        found[arm] = {
            seed: [run["bits_per_byte"] for run in of if run is not None]
            for seed, of in of_seeds.items()
            if None not in of
        }
    if not all(found.values()):
        return None
    flops = [
        training_flops(macs(size, FIRST), steps_of(size, FIRST, equal_flops=True) * BATCH_TOKENS)
        for size in SIZES
    ]
    return scaling(found, flops, FIRST)


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
    parser.add_argument("--equal", nargs="+", choices=RACES, default=[*RACES])
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
    race(options.sizes, arms, options.equal, options.seeds, options.nanochat)
    print(json.dumps(summarize(), indent=1))


if __name__ == "__main__":
    main()
