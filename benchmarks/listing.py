"""Measure what commands ask of a store with many runs, or with a long one: requests and seconds.

    uv run python -m benchmarks.listing [--runs 10 100 1000] [--rows 10000 100000 1000000]

The store is moto's server on loopback, or the service that PION_REAL_S3 names. Each number of runs
is measured with 20 objects a run, and the largest also with 40: what lies below a run must cost
nothing. A long run has a file for every hundred rows of metrics, which its owner joins. It is read
by `pion status` and by the page of a run, each in a fresh process, whose memory is measured.
Writes benchmarks/results/listing.json, or listing_real.json for a real service.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.one_look import Counted
from benchmarks.startup import ROOT
from pipeline.commands.status import show_statuses
from pipeline.rent.plan.command import show_plan
from pipeline.state.find_run import runs_in
from pipeline.state.stores import open_store
from tests.support.many_runs import write_long_run, write_runs
from tests.support.s3_server import REAL_SERVICE, s3_server

NAME = "listing_real" if REAL_SERVICE else "listing"
RESULT = ROOT / "benchmarks" / "results" / f"{NAME}.json"
JOB = str(ROOT / "jobs" / "pion-small.yaml")


def measured(url: str, runs: int, objects: int, counted: Counted) -> dict[str, Any]:
    """Write the runs to the store `url`, and return what commands cost there."""
    names = write_runs(open_store(url), runs, objects)
    plan = [f"store={url}"]
    return {
        "runs": runs,
        "objects": objects,
        "all_runs": counted.measure(lambda: runs_in(open_store(url))),
        "plan": counted.measure(lambda: show_plan(JOB, plan, gpus=["A40"], as_json=True)),
        "status": counted.measure(lambda: show_statuses([f"{url}/{names[-1]}"], as_json=True)),
    }


def measured_long(url: str, rows: int) -> dict[str, Any]:
    """Write a run of that many rows to the store `url`, and return what it costs to read it."""
    store = open_store(url)
    run = write_long_run(store, rows)
    files = len(store.list(f"{run.state.name}/metrics/"))
    found: dict[str, Any] = {"rows": rows, "files": files}
    for reader in ("status", "page"):
        command = [sys.executable, "-m", "benchmarks.one_look", reader, run.state.url]
        read = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[reader] = json.loads(read.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    given = parser.parse_args()
    sizes = given.runs
    counted, rows = Counted(), []
    with s3_server() as s3, pytest.MonkeyPatch.context() as patch, counted.use():
        s3.use(patch)
        show_plan(JOB, [f"store=s3://{s3.bucket()}/runs"], gpus=["A40"], as_json=True)  # imports
        for runs, objects in [*((size, 20) for size in sizes), (max(sizes), 40)]:
            rows.append(measured(f"s3://{s3.bucket()}/runs", runs, objects, counted))
            print(json.dumps(rows[-1]), flush=True)
        long_runs = []
        for count in given.rows:
            long_runs.append(measured_long(f"s3://{s3.bucket()}/runs", count))
            print(json.dumps(long_runs[-1]), flush=True)
        # Before the buckets are deleted, which takes minutes on a real service.
        service = "a real service" if REAL_SERVICE else "moto"
        result = {"service": service, "cores": os.cpu_count(), "runs": rows, "long": long_runs}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
