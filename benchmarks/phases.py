"""Compare endings of pretraining: questions late, spread over the run or not at all.

    uv run python -m benchmarks.phases [--seeds N]

jobs/demo-phases.yaml runs with each seed in three ways: prose alone; questions in the last quarter;
and the same number of rows of questions spread over the whole run, which is the honest control.
All runs of a seed begin with the same weights. Differences are paired by seed. Writes
benchmarks/results/phases.json. benchmarks/longer_rows.py compares lengths of rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.__main__ import circumstances
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store

JOB = "jobs/demo-phases.yaml"
RESULTS = Path(__file__).parent / "results" / "phases.json"
# Of 96 steps, 24 read one row of questions in three: a twelfth of all rows.
WAYS = {
    "prose": "[{mix: {prose: 1}}]",
    "late": "[{until: 0.75, mix: {prose: 1}}, {mix: {prose: 2, questions: 1}}]",
    "spread": "[{mix: {prose: 11, questions: 1}}]",
}


def main() -> None:
    """Run all ways with all seeds, and write what differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    about = circumstances()
    with tempfile.TemporaryDirectory() as store:
        found = {way: [measured(store, way, seed) for seed in seeds] for way in WAYS}
    differences = {
        f"{a} − {b}": {name: paired(found[a], found[b], name) for name in found[a][0]}
        for a, b in (("late", "prose"), ("late", "spread"), ("spread", "prose"))
    }
    result = {
        "circumstances": about,
        "job": JOB,
        "ways": WAYS,
        "runs": found,
        "paired": differences,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for pair, numbers in differences.items():
        for name, (mean, sem, t) in numbers.items():
            print(f"{pair:16} {name:24} {mean:+.4f} ± {sem:.4f}  t {t:+.1f}")


def measured(store: str, way: str, seed: int) -> dict[str, float]:
    """Run the demo in one way, and return bits per byte by source."""
    job = [f"name={way}-{seed}", f"store={store}", f"seed={seed}", f"pretrain.phases={WAYS[way]}"]
    subprocess.run([sys.executable, "-m", "pipeline.cli", "run", JOB, *job], check=True)
    head = RunState(open_store(store), f"{way}-{seed}").read()
    assert head is not None
    of: dict[str, Any] = head.stages["evaluate"].result["pretrain"]
    return {f"{name}, bits per byte": one["bits_per_byte"] for name, one in of["sources"].items()}


def paired(ours: list[dict[str, float]], theirs: list[dict[str, float]], name: str) -> list[float]:
    """Return the mean difference of a number, its standard error, and Student's t."""
    both = zip(ours, theirs, strict=True)
    differences = np.array([a.get(name, np.nan) - b.get(name, np.nan) for a, b in both])
    sem = float(differences.std(ddof=1) / np.sqrt(len(differences)))
    return [float(differences.mean()), sem, float(differences.mean()) / sem]


if __name__ == "__main__":
    main()
