"""A run of 22,500 steps and ten machines on the page. Prints how long the looks take."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.live.watched_run import View, WatchedRun
from pipeline.report.curves import MOST_POINTS
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore, Store, open_store
from tests.support.rented_run import RentedRun
from tests.support.s3_server import FaultProxy, S3Server

STEPS = 22_500
LATENCY = 0.02


def long_run(store: Store) -> RentedRun:
    """Return a run that lost half of a tenth of its steps with each of ten machines.

    Its metrics are in about 3,400 files, as those of a run with a step a second.
    """
    run = RentedRun(store, steps=STEPS)
    for _ in range(10):
        run.rent()
        run.train(STEPS // 10)
        run.save()
        run.train(STEPS // 20)
    return run


def seconds(watched: WatchedRun) -> float:
    start = time.perf_counter()
    watched.look()
    assert watched.told()["trouble"] is None
    return time.perf_counter() - start


def check(watched: WatchedRun, run: RentedRun) -> None:
    told = watched.told()
    loss = watched.curves(View("pretrain", ("loss",)), None)["pretrain"]["loss"]
    assert MOST_POINTS / 2 < len(loss) <= MOST_POINTS
    assert loss[-1][0] == run.step
    assert len(told["machines"]) == 10


@contextlib.contextmanager
def late_answers(url: str) -> Iterator[S3Server]:
    """Run a proxy in a separate process, so that it does not take time from the one measured."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=_answer_late, args=(url, theirs))
    process.start()
    try:
        yield S3Server(ours.recv())
    finally:
        ours.send("end")
        process.join()


def _answer_late(url: str, pipe: Any) -> None:
    with FaultProxy(url) as proxy:
        proxy.fail(".", kind="delay", seconds=LATENCY, times=math.inf)
        pipe.send(proxy.url)
        pipe.recv()


@pytest.mark.soak  # it writes thousands of files, and each is a request
def test_a_long_run_is_shown_from_a_folder_and_from_a_slow_s3(
    tmp_path: Path,
    s3: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = FileStore(tmp_path)
    run = long_run(here)
    s3.use(monkeypatch)
    url = f"s3://{s3.bucket()}/runs"
    there = open_store(url)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda entry: there.write(entry.key, here.read(entry.key)), here.list()))
    with late_answers(s3.url) as slow:
        slow.use(monkeypatch)
        for name, store in (("a folder", here), ("S3 with 20 ms", open_store(url))):
            watched = WatchedRun(RunState(store, run.state.name, run.state.clock))
            first, *later = [seconds(watched) for _ in range(4)]
            check(watched, run)
            with capsys.disabled():
                print(f"\n{name}: first look {first:.2f} s, later {max(later):.2f} s at most")
