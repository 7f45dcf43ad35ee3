"""Compare the speed of this checkout with an earlier commit, for what both can do.

    uv run python -m benchmarks.unchanged [--before COMMIT] [--pairs 30] [--starts 8]

The earlier commit's files are written to a temporary folder, and both run with this environment's
packages. Three things are compared, always in interleaved pairs whose order alternates:

  * a training step of a dense pion-nano, in two processes that stay alive and train one step at a
    time. Both see the same rows, and their losses are compared too;
  * `import pion`, in fresh processes;
  * the first step of `pion run jobs/demo.yaml`, resumed from a checkpoint, with --starts pairs.

A ratio is this checkout's seconds over the earlier commit's: its median over pairs, and the 95 %
interval of the median. Fails if an interval lies above 1.00. Run this on an idle machine; to see
the noise, compare with --before HEAD. Writes benchmarks/results/unchanged.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.startup import seconds_until
from pion.train.hardware import has_bf16

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "unchanged.json"
WORKER = ROOT / "benchmarks" / "step_on_demand.py"
# The last commit whose only family was Pion.
BEFORE_THE_FAMILIES = "0afbd30"
WARMUP_STEPS = 3
# Emulated bf16 takes minutes for a step.
PRECISION = "bf16" if has_bf16(torch.device("cpu")) else "fp32"
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
MODES = {"fp32, AdamW": ("float32", "adamw"), f"{PRECISION}, Muon": (DTYPES[PRECISION], "muon")}
IMPORT = "import time; start = time.perf_counter(); import pion; print(time.perf_counter() - start)"

# `pion run` refuses after five attempts that committed nothing.
STARTS_PER_RUN = 4

# Returns the seconds of one measurement.
Measure = Callable[[], float]


def extract(commit: str, tree: Path) -> None:
    """Write the files of `commit` to the folder `tree`."""
    tree.mkdir()
    archive = subprocess.run(
        ["git", "-C", str(ROOT), "archive", commit], stdout=subprocess.PIPE, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive.stdout, check=True)


def environment(tree: Path) -> dict[str, str]:
    """Return the environment in which Python imports the packages of `tree`.

    Python may keep compiled modules, as it does for a user. Without them, the six processes of a
    demo would each compile our files, and the number of files would be measured.
    """
    kept = {name: at for name, at in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"PYTHONPATH": str(tree)}


def in_pairs(now: Measure, before: Measure, pairs: int) -> dict[str, Any]:
    """Measure both by turns, and return the median seconds and the ratio."""
    seconds: dict[str, list[float]] = {"now": [], "before": []}
    for number in range(pairs):
        turns = [("now", now), ("before", before)]
        for name, measure in turns if number % 2 == 0 else turns[::-1]:
            seconds[name].append(measure())
    ratios = [a / b for a, b in zip(seconds["now"], seconds["before"], strict=True)]
    return {
        "pairs": pairs,
        "now_seconds": round(statistics.median(seconds["now"]), 4),
        "before_seconds": round(statistics.median(seconds["before"]), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_95": [round(end, 3) for end in median_interval(ratios)],
    }


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median, by order statistics (Conover 1999, section 3.2).

    Each value is above the median with a chance of a half, so the number above it is binomial. Of
    fewer than six values, it is the whole range, whose chance is lower.
    """
    ordered, n = sorted(values), len(values)
    # `chance` is that of at most `outside` values above the median.
    outside, chance = 0, 1 / 2**n
    while chance <= 0.025:
        outside += 1
        chance += math.comb(n, outside) / 2**n
    outside = max(outside - 1, 0)
    return ordered[outside], ordered[n - 1 - outside]


class Steps:
    """A process that trains with the packages of `tree`, one step for each call."""

    def __init__(self, tree: Path, mode: tuple[str, str]) -> None:
        self.losses: list[float] = []
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), *mode],
            cwd=tree,
            env=environment(tree),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        package = self._line().strip()
        if not Path(package).is_relative_to(tree):
            raise SystemExit(f"{package} was imported, which is not in {tree}")

    def __call__(self) -> float:
        """Train one step and return its seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        step = json.loads(self._line())
        self.losses.append(step["loss"])
        return float(step["seconds"])

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a training process ended with {self._process.wait()}")
        return line


def compare_steps(tree: Path, mode: tuple[str, str], pairs: int) -> dict[str, Any]:
    """Return the seconds of a training step, and whether all losses were equal."""
    with ExitStack() as stack:
        now, before = Steps(ROOT, mode), Steps(tree, mode)
        for side in (now, before):
            stack.callback(side.close)
            for _ in range(WARMUP_STEPS):
                side()
        result = in_pairs(now, before, pairs)
    return result | {"losses_equal": now.losses == before.losses}


def import_seconds(tree: Path) -> float:
    """Return the seconds of `import pion` in a fresh process."""
    command = [sys.executable, "-c", IMPORT]
    done = subprocess.run(
        command, cwd=tree, env=environment(tree), capture_output=True, encoding="utf-8", check=True
    )
    return float(done.stdout)


class Demo:
    """The demo with the packages of `tree`, killed after step 12; each call resumes it."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self._tree, self._folder, self._starts = tree, folder, 0
        self._store = folder

    def __call__(self) -> float:
        """Return the seconds from starting `pion run` to its first step."""
        if self._starts % STARTS_PER_RUN == 0:
            self._store = self._folder / str(self._starts)
            self._run_until("step 12")
        self._starts += 1
        return self._run_until("first step")

    def _run_until(self, text: str) -> float:
        demo = [sys.executable, "-m", "pipeline.cli", "run", "jobs/demo.yaml"]
        cadence = ["checkpoint.every_steps=10", "log.every=1"]
        process = subprocess.Popen(
            [*demo, f"store={self._store}", f"publish.to={self._store}/model", *cadence],
            cwd=self._tree,
            env=environment(self._tree),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )
        seconds = seconds_until(process, text, [])
        process.send_signal(signal.SIGKILL)
        process.wait()
        time.sleep(3)  # until its workers have ended
        return seconds


def compare_demos(tree: Path, starts: int) -> dict[str, Any]:
    """Return the seconds to the first step of the demo."""
    with tempfile.TemporaryDirectory() as folder:
        now, before = Demo(ROOT, Path(folder) / "now"), Demo(tree, Path(folder) / "before")
        return in_pairs(now, before, starts)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", metavar="COMMIT", default=BEFORE_THE_FAMILIES)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--starts", type=int, default=8, help="0 leaves out the demo")
    options = parser.parse_args()
    report: dict[str, Any] = {
        "before": options.before,
        "load_average_before": round(os.getloadavg()[0], 2),
    }
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "before"
        extract(options.before, tree)
        for name, mode in MODES.items():
            report[f"step of pion-nano, {name}"] = compare_steps(tree, mode, options.pairs)
        report["import pion"] = in_pairs(
            lambda: import_seconds(ROOT), lambda: import_seconds(tree), options.pairs
        )
        if options.starts:
            report["first step of the demo"] = compare_demos(tree, options.starts)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    for what, result in report.items():
        if isinstance(result, dict) and result["ratio_95"][0] > 1.0:
            raise SystemExit(f"{what}: {result['ratio']} × the time of {options.before}")


if __name__ == "__main__":
    main()
