"""Measure what commands ask of a store with many runs: requests, and seconds.

    uv run python -m benchmarks.listing [--runs 10 100 1000]

The store is moto's server on loopback, or the service that PION_REAL_S3 names. Each number of runs
is measured with 20 objects a run, and the largest also with 40: what lies below a run must cost
nothing. Writes benchmarks/results/listing.json, or listing_real.json for a real service.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from benchmarks.startup import ROOT
from pipeline.commands.status import show_statuses
from pipeline.rent.plan.command import show_plan
from pipeline.state.find_run import runs_in
from pipeline.state.stores import open_store
from pipeline.state.stores.s3 import bucket
from tests.support.many_runs import write_runs
from tests.support.s3_server import REAL_SERVICE, s3_server

NAME = "listing_real" if REAL_SERVICE else "listing"
RESULT = ROOT / "benchmarks" / "results" / f"{NAME}.json"
JOB = str(ROOT / "jobs" / "pion-small.yaml")


class Counted:
    """Counts the requests of every S3 client that is made while it is used."""

    def __init__(self) -> None:
        self.requests = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        connect = bucket._connect

        def counted() -> Any:
            client = connect()
            client.meta.events.register("before-send.s3", self._count)
            return client

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bucket, "_connect", counted)
            yield

    def _count(self, **about: Any) -> None:
        with self._lock:
            self.requests += 1

    def measure(self, work: Callable[[], object]) -> dict[str, float]:
        before, start = self.requests, time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            work()
        seconds = time.perf_counter() - start
        return {"requests": self.requests - before, "seconds": round(seconds, 3)}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 100, 1000])
    sizes = parser.parse_args().runs
    counted, rows = Counted(), []
    with s3_server() as s3, pytest.MonkeyPatch.context() as patch, counted.use():
        s3.use(patch)
        show_plan(JOB, [f"store=s3://{s3.bucket()}/runs"], gpus=["A40"], as_json=True)  # imports
        for runs, objects in [*((size, 20) for size in sizes), (max(sizes), 40)]:
            rows.append(measured(f"s3://{s3.bucket()}/runs", runs, objects, counted))
            print(json.dumps(rows[-1]), flush=True)
        # Before the buckets are deleted, which takes minutes on a real service.
        service = "a real service" if REAL_SERVICE else "moto"
        result = {"service": service, "cores": os.cpu_count(), "rows": rows}
        RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
