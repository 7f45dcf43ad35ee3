"""Read a run once, as `pion status` or the page of a run does, and print what it costs, as JSON.

uv run python -m benchmarks.one_look status|page RUN
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from benchmarks.memory import resident
from pipeline.commands.status import show_statuses
from pipeline.live.watched_run import WatchedRun
from pipeline.state.find_run import read_run
from pipeline.state.stores.s3 import bucket


class Counted:
    """Counts the requests of every S3 client that is made while it is used."""

    def __init__(self) -> None:
        self.requests = 0
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def use(self) -> Iterator[None]:
        connect = bucket._connect

        def counted(checksums: bool) -> Any:
            client = connect(checksums)
            client.meta.events.register("before-send.s3", self._count)
            return client

        with mock.patch.object(bucket, "_connect", counted):
            yield

    def _count(self, **about: Any) -> None:
        with self._lock:
            self.requests += 1

    def measure(self, work: Callable[[], object]) -> dict[str, float]:
        before, start, cpu = self.requests, time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            work()
        return {
            "requests": self.requests - before,
            "seconds": round(time.perf_counter() - start, 3),
            "cpu_seconds": round(time.process_time() - cpu, 3),
        }


def main() -> None:
    reader, url = sys.argv[1:]
    counted = Counted()
    found: dict[str, Any]
    with counted.use():
        if reader == "status":
            found = {"first": counted.measure(lambda: show_statuses([url], as_json=True))}
        else:
            run = WatchedRun(read_run(url)[0])
            found = {"first": counted.measure(run.look), "later": counted.measure(run.look)}
    # Not ru_maxrss, which is at least what the process that started this one had.
    print(json.dumps({**found, "peak_mb": round(resident("VmHWM") / 2**20)}))


if __name__ == "__main__":
    main()
