"""Measure the seconds to the first step of a resumed demo, and compare with a bare Ray Train loop.

    uv run python -m benchmarks.startup [--rounds 3]

Both are fresh processes, started in turn on the same machine. The bare loop is a TorchTrainer with
one CPU worker that does nothing. Then a shortened demo goes through all stages, to time the gaps
between them. Writes benchmarks/results/startup.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "startup.json"

BARE = """
import os
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
import tempfile
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def loop():
    open(os.environ["FIRST_LINE"], "w").close()

ray.init(address="local")
TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=1),
             run_config=RunConfig(name="bare", storage_path=tempfile.mkdtemp())).fit()
"""


def run_bare() -> float:
    """Return the seconds from starting Python to the first line of an empty Ray Train loop."""
    with tempfile.TemporaryDirectory() as folder:
        mark = Path(folder) / "first-line"
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", BARE],
            env=os.environ | {"FIRST_LINE": str(mark)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not mark.exists():
            assert process.poll() is None, "the bare trainer failed"
            time.sleep(0.02)
        seconds = time.monotonic() - started
        process.wait()
        return seconds


def start_pion(store: Path, *overrides: str) -> subprocess.Popen[str]:
    """Start `pion run` of the demo on `store`."""
    command = [sys.executable, "-m", "pipeline.cli", "run", "jobs/demo.yaml", f"store={store}"]
    return subprocess.Popen(
        [*command, f"publish.to={store}/model", *overrides],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


def seconds_until(process: subprocess.Popen[str], text: str, log: list[str]) -> float:
    """Return the seconds from now to the first line of output that contains `text`."""
    started = time.monotonic()
    assert process.stdout is not None
    for line in process.stdout:
        log.append(line)
        if text in line:
            return time.monotonic() - started
    raise SystemExit(f"no {text!r} in:\n{''.join(log)}")


BOUNDARIES = {
    "pretrain to first sft step": ("pretrain: done", "sft step 1/"),
    "sft to evaluate": ("sft: done", "evaluate: starts"),
    "evaluate to publish": ("evaluate: done", "publish: starts"),
}


def stage_boundaries(store: Path) -> dict[str, float]:
    """Return the seconds from the end of each stage to the work of the next."""
    short = ("pretrain.steps=12", "pretrain.warmup_steps=2", "sft.steps=6", "sft.warmup_steps=1")
    process = start_pion(store, *short, "log.every=1", "publish.require=[]")
    log: list[str] = []
    seen = {}
    for mark in [mark for pair in BOUNDARIES.values() for mark in pair]:
        seconds_until(process, mark, log)
        seen[mark] = time.monotonic()
    process.communicate()
    return {name: seen[after] - seen[before] for name, (before, after) in BOUNDARIES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds

    bare, resumed, logs = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        cadence = ("checkpoint.every_steps=10", "log.every=1")
        process = start_pion(store, *cadence)
        seconds_until(process, "step 12", [])
        process.send_signal(signal.SIGKILL)
        process.wait()
        for _ in range(rounds):
            bare.append(run_bare())
            log: list[str] = []
            process = start_pion(store, *cadence)
            resumed.append(seconds_until(process, "first step", log))
            process.send_signal(signal.SIGKILL)
            process.wait()
            logs.append([line.rstrip() for line in log if " s" in line])
            time.sleep(3)
    with tempfile.TemporaryDirectory() as folder:
        boundaries = stage_boundaries(Path(folder))
    result = {
        "bare_seconds": bare,
        "resumed_seconds": resumed,
        "ratio_of_medians": statistics.median(resumed) / statistics.median(bare),
        "phases": logs[-1],
        "stage_boundary_seconds": boundaries,
    }
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
