"""Measure the seconds from `pion run` to the first step of a run that resumes from S3, by phase.

    uv run python -m benchmarks.restore [--rounds 3]

Two cases are measured in turn on one machine: an empty disk, where prepared data and checkpoint are
downloaded while Ray starts, and the disk of the machine that was interrupted. S3 is moto's server
on loopback, so the result is the cost of the start without a network. Writes
benchmarks/results/restore.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.startup import ROOT, seconds_until
from tests.support.s3_server import s3_server

RESULT = ROOT / "benchmarks" / "results" / "restore.json"
PHASE = re.compile(r"([A-Za-z][\w ]*?)(?: after|:)? (\d+\.\d) s")


def start(store: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """Start `pion run` of the demo on `store`."""
    command = [sys.executable, "-m", "pipeline.cli", "run", "jobs/demo.yaml", f"store={store}"]
    return subprocess.Popen(
        # Where the README's command publishes, another run may not. This run ends before it does.
        [*command, "publish.to=models/restored", "checkpoint.every_steps=10", "log.every=1"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )


def resume(store: str, environment: dict[str, str]) -> dict[str, float]:
    """Return the seconds by phase until the first step, and kill the run there."""
    log: list[str] = []
    process = start(store, environment)
    seconds_until(process, "first step after", log)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(3)
    text = log[-1].split("  ", 1)[1]
    phases = {name.strip(" ,("): float(seconds) for name, seconds in PHASE.findall(text)}
    return phases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    results: dict[str, list[dict[str, float]]] = {"empty disk": [], "same disk": []}
    with s3_server() as s3, tempfile.TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        environment = os.environ | s3.environment() | {"XDG_CACHE_HOME": str(cache)}
        store = f"s3://{s3.bucket()}/runs"
        process = start(store, environment)
        seconds_until(process, "step 12/", [])
        process.send_signal(signal.SIGKILL)
        process.wait()
        for _ in range(rounds):
            results["same disk"].append(resume(store, environment))
            shutil.rmtree(cache)
            results["empty disk"].append(resume(store, environment))
    medians = {
        kind: statistics.median(phases["first step"] for phases in runs)
        for kind, runs in results.items()
    }
    result = {"first_step_seconds": medians, "phases": results}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
