"""A hang is noticed, described and reported once; slow, paused and suspended work is no hang."""

from __future__ import annotations

import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.training.watchdog import Watchdog


class Clock:
    """A clock that runs on its own, and can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


class Watched:
    """Watchdogs whose reports are kept, and which end with the test."""

    def __init__(self) -> None:
        self.hangs: queue.Queue[str] = queue.Queue()
        self.made: list[Watchdog] = []

    def __call__(self, **limits: Any) -> Watchdog:
        self.made.append(Watchdog(self.hangs.put, **limits))
        return self.made[-1]

    def hang(self) -> str:
        return self.hangs.get(timeout=60)


@pytest.fixture
def watchdog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    watched = Watched()
    yield watched
    for dog in watched.made:
        dog.close()


def beat(dog: Watchdog, times: int, every: float) -> None:
    for _ in range(times):
        time.sleep(every)
        dog.beat()


def test_silence_after_some_steps_is_a_hang(watchdog: Watched) -> None:
    dog = watchdog(factor=2, at_least=0.2)
    beat(dog, times=5, every=0.01)
    assert watchdog.hang().startswith("No step or batch for ")


def test_a_hang_is_reported_once(watchdog: Watched) -> None:
    dog = watchdog(factor=2, at_least=0.1)
    beat(dog, times=3, every=0.01)
    watchdog.hang()
    dog.beat()
    time.sleep(0.5)
    assert watchdog.hangs.empty()


def wait_for_a_rank_that_never_comes(never: threading.Event) -> None:
    never.wait()


def test_the_report_shows_where_every_thread_is_and_a_file_has_it_too(
    watchdog: Watched, tmp_path: Path
) -> None:
    never = threading.Event()
    stuck = threading.Thread(target=wait_for_a_rank_that_never_comes, args=(never,))
    stuck.start()
    dog = watchdog(factor=2, at_least=0.1)
    beat(dog, times=3, every=0.01)
    text = watchdog.hang()
    never.set()
    stuck.join()
    assert "in wait_for_a_rank_that_never_comes" in text
    assert re.search(r"test_watchdog\.py\", line \d+ in test_the_report_shows", text)
    [file] = tmp_path.glob("pion-hang-*.txt")
    assert text.splitlines()[-1] == f"(also in {file})"
    assert file.read_text() in text


def test_a_hang_is_reported_when_no_file_can_be_written(
    watchdog: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    dog = watchdog(factor=2, at_least=0.1)
    beat(dog, times=3, every=0.01)
    text = watchdog.hang()
    assert "in test_a_hang_is_reported_when_no_file_can_be_written" in text
    assert "(not written to a file: " in text


def test_a_start_may_take_longer_than_a_step(watchdog: Watched) -> None:
    dog = watchdog(factor=2, at_least=0.05, start_limit=600)
    time.sleep(0.5)
    dog.beat()  # the first step, compiled
    time.sleep(0.5)
    assert watchdog.hangs.empty()


def test_a_start_that_never_ends_is_a_hang(watchdog: Watched) -> None:
    watchdog(start_limit=0.2)
    assert "since the start" in watchdog.hang()


def test_the_limit_grows_with_the_usual_step(watchdog: Watched) -> None:
    dog = watchdog(factor=100, at_least=0.05)
    beat(dog, times=4, every=0.1)
    time.sleep(1)  # ten steps' time
    assert watchdog.hangs.empty()


def test_one_slow_step_does_not_change_what_is_usual(watchdog: Watched) -> None:
    dog = watchdog(factor=2, at_least=1.0)
    beat(dog, times=5, every=0.01)
    beat(dog, times=1, every=0.8)  # makes the mean of the intervals 0.2 s
    assert re.search(r"one usually takes 0\.[01] s", watchdog.hang())


def test_what_gets_on_without_a_step_is_no_hang_until_it_stops(watchdog: Watched) -> None:
    dog = watchdog(factor=2, at_least=0.5)
    beat(dog, times=5, every=0.01)
    for _ in range(15):
        time.sleep(0.1)
        dog.progress()
    assert watchdog.hangs.empty()
    assert watchdog.hang().startswith("No step or batch for ")


def test_what_gets_on_without_a_step_does_not_change_what_is_usual(watchdog: Watched) -> None:
    dog = watchdog(factor=2, at_least=1.0)
    beat(dog, times=5, every=0.01)
    for _ in range(6):
        time.sleep(0.3)
        dog.progress()
        dog.beat()
    assert re.search(r"one usually takes 0\.[01] s", watchdog.hang())


def test_progress_before_the_first_steps_leaves_them_the_time_of_a_start(
    watchdog: Watched,
) -> None:
    dog = watchdog(factor=2, at_least=0.05, start_limit=600)
    dog.progress()
    dog.progress()
    time.sleep(0.5)
    assert watchdog.hangs.empty()


def test_nothing_is_expected_during_a_pause_and_counting_restarts_after_it(
    watchdog: Watched,
) -> None:
    dog = watchdog(factor=2, at_least=0.2)
    beat(dog, times=5, every=0.01)
    with dog.paused():
        with dog.paused():
            time.sleep(0.5)
        time.sleep(0.5)
        assert watchdog.hangs.empty()
    assert watchdog.hang().startswith("No step or batch for 0 s")


def test_a_pause_that_raises_is_over(watchdog: Watched) -> None:
    dog = watchdog(factor=2, at_least=0.1)
    beat(dog, times=3, every=0.01)
    with pytest.raises(OSError, match="the store is down"), dog.paused():
        raise OSError("the store is down")
    watchdog.hang()


def test_a_pause_is_no_usual_interval(watchdog: Watched) -> None:
    dog = watchdog(factor=2, at_least=0.05, start_limit=600)
    dog.beat()
    with dog.paused():
        time.sleep(0.3)
    dog.beat()  # still no interval between two beats: the start's limit holds
    time.sleep(0.5)
    assert watchdog.hangs.empty()


def test_time_in_which_the_watchdog_itself_did_not_run_is_no_hang(watchdog: Watched) -> None:
    clock = Clock()
    dog = watchdog(factor=2, at_least=0.5, now=clock)
    beat(dog, times=5, every=0.01)
    clock.ahead += 3600  # a laptop's lid was closed
    assert watchdog.hang().startswith("No step or batch for 1 s")


SUSPENDED = """
import os, sys, time
from pipeline.training.watchdog import Watchdog
dog = Watchdog(lambda text: os._exit(70), factor=2, at_least=1.0)
for _ in range(5):
    time.sleep(0.01)
    dog.beat()
print("ready", flush=True)
sys.stdin.readline()
"""


def test_a_process_stopped_for_longer_than_the_limit_goes_on() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SUSPENDED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGSTOP)
    time.sleep(2)
    process.send_signal(signal.SIGCONT)
    process.communicate("done\n")
    assert process.returncode == 0


def test_a_closed_watchdog_reports_nothing(watchdog: Watched) -> None:
    dog = watchdog(factor=2, at_least=0.1)
    beat(dog, times=3, every=0.01)
    dog.close()
    time.sleep(0.5)
    assert watchdog.hangs.empty()


def test_whoever_is_told_of_a_hang_may_close_the_watchdog(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    closed = threading.Event()

    def close(_: str) -> None:
        dog.close()
        closed.set()

    dog = Watchdog(close, start_limit=0.1)
    assert closed.wait(10)
