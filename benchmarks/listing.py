"""Measure what commands ask of a store with many runs, or with a long one: requests and seconds.

    uv run python -m benchmarks.listing [--only runs long moved] [--runs 10 100 1000]
        [--rows 10000 … 1000000] [--moves 200]

Many runs are in a bucket of many_keys.py, with 10,000 objects in each: ten million keys are more
than moto holds. Long runs are on moto's server on loopback. If PION_REAL_S3 names a service, all of
it is there, with 20 objects a run, and for the largest number of runs also with 40: what lies below
a run must cost nothing. A long run has a file for every hundred rows of metrics, which its owner
joins. A moved run was on so many machines, with 500 steps on each. Both are read by `pion status`
and by the page of a run, each in a fresh process, whose memory is measured. Writes
benchmarks/results/listing.json, or listing_real.json for a real service; with --only, the other
numbers there are kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest

from benchmarks.many_keys import BUCKET, many_keys
from benchmarks.one_look import Counted
from benchmarks.startup import ROOT
from pion.errors import BadInput
from pipeline.commands.data import show_data
from pipeline.rent.plan.command import show_plan
from pipeline.state.find_run import read_run, runs_in
from pipeline.state.rows.row_types import LARGEST_SEGMENT as SIZE
from pipeline.state.stores import FileStore, Store, open_store
from pipeline.state.stores.parallel import read_all
from tests.support.many_runs import write_long_run, write_moved_run, write_runs
from tests.support.rented_run import RentedRun
from tests.support.s3_server import REAL_SERVICE, S3Server, s3_server

NAME = "listing_real" if REAL_SERVICE else "listing"
RESULT = ROOT / "benchmarks" / "results" / f"{NAME}.json"
JOB = str(ROOT / "jobs" / "pion-small.yaml")
OBJECTS = 10_000
STEPS_A_MACHINE = 500
PARTS = ["runs", "long", "moved"]


def measured(url: str, runs: int, objects: int, counted: Counted) -> dict[str, Any]:
    """Return what commands cost in the store `url` with that many runs."""

    def read_wrong_name() -> None:
        with contextlib.suppress(BadInput):
            read_run(f"{url}/wrong")

    plan = [f"store={url}"]
    found = {
        "runs": runs,
        "objects": objects,
        "all_runs": counted.measure(lambda: runs_in(open_store(url))),
        "plan": counted.measure(lambda: show_plan(JOB, plan, gpus=["A40"], as_json=True)),
        "data": counted.measure(lambda: show_data(url, as_json=True)),
        "wrong_name": counted.measure(read_wrong_name),
    }
    print(json.dumps(found), flush=True)
    return found


def measured_runs(sizes: Sequence[int], counted: Counted) -> Iterator[dict[str, Any]]:
    """Yield what commands cost in a bucket with ten thousand objects for each run."""
    for runs in sizes:
        with many_keys(runs, OBJECTS) as s3, pytest.MonkeyPatch.context() as patch:
            s3.use(patch)
            yield measured(f"s3://{BUCKET}/runs", runs, OBJECTS, counted)


def measured_real_runs(
    sizes: Sequence[int], s3: S3Server, counted: Counted
) -> Iterator[dict[str, Any]]:
    """Yield what commands cost on a real service."""
    for runs, objects in [*((size, 20) for size in sizes), (max(sizes), 40)]:
        url = f"s3://{s3.bucket()}/runs"
        write_runs(open_store(url), runs, objects)
        yield measured(url, runs, objects, counted)


def measured_run(url: str, write: Callable[[Store], RentedRun]) -> dict[str, Any]:
    """Write a run, copy it to the store `url`, and return what it costs to read it there."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        here, there = FileStore(folder), open_store(url)
        run = write(here)
        read_all(lambda entry: there.write(entry.key, here.read(entry.key, SIZE)), here.list())
    files = len(there.list(f"{run.state.name}/metrics/"))
    found: dict[str, Any] = {"rows": run.step, "files": files}
    for reader in ("status", "page"):
        command = [sys.executable, "-m", "benchmarks.one_look", reader, f"{url}/{run.state.name}"]
        read = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[reader] = json.loads(read.stdout.splitlines()[-1])
    print(json.dumps(found), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 100, 1000])
    # Just before the 99 objects of a million rows are joined, there are the most.
    rows_by_default = [10_000, 100_000, 990_000, 1_000_000]
    parser.add_argument("--rows", type=int, nargs="+", default=rows_by_default)
    parser.add_argument("--moves", type=int, nargs="+", default=[200])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    service = "a real service" if REAL_SERVICE else "many_keys.py, and moto for long runs"
    kept: dict[str, Any] = {} if given.only == PARTS else json.loads(RESULT.read_text())
    result = {**kept, "service": service, "cores": os.cpu_count()}
    counted = Counted()
    with s3_server() as s3, pytest.MonkeyPatch.context() as patch, counted.use():
        s3.use(patch)
        url = f"s3://{s3.bucket()}/runs"
        for part in given.only:
            result[part] = measured_part(part, given, s3, url, counted)
        # Before the buckets are deleted, which takes minutes on a real service.
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


def measured_part(
    part: str, given: argparse.Namespace, s3: S3Server, url: str, counted: Counted
) -> list[dict[str, Any]]:
    """Return the numbers of one of PARTS. Runs are written to the store `url`."""
    if part == "long":
        return [measured_run(url, partial(write_long_run, steps=rows)) for rows in given.rows]
    if part == "moved":
        return [
            {"moves": moves}
            | measured_run(url, partial(write_moved_run, moves=moves, steps=STEPS_A_MACHINE))
            for moves in given.moves
        ]
    show_plan(JOB, [f"store={url}"], gpus=["A40"], as_json=True)  # imports
    if REAL_SERVICE:
        return list(measured_real_runs(given.runs, s3, counted))
    return list(measured_runs(given.runs, counted))


if __name__ == "__main__":
    main()
