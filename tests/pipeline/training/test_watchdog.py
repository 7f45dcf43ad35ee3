"""A hang is noticed, described and reported once. Slow, paused or suspended work does not hang."""

from __future__ import annotations

import re
import tempfile
import threading

import pytest

from pipeline.training.watchdog import Watchdog
from tests.support.waiting import join, wait_until


class Watched:
    """A watchdog on a clock that tests move, and what it reported."""

    def __init__(self, **limits):
        self.time = 1000.0
        self.hangs: list[str] = []
        self.dog = Watchdog(self.hangs.append, now=lambda: self.time, **limits)

    def work(self, *steps):
        """Let each step take so many seconds."""
        for seconds in steps:
            self.wait(seconds)
            self.dog.beat()

    def wait(self, seconds):
        """Let time pass; the watchdog checks as often as usual."""
        end = self.time + seconds
        while self.time < end:
            self.time = min(end, self.time + self.dog.period)
            self.dog.check()


@pytest.fixture(autouse=True)
def _files_here(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def test_silence_after_some_steps_is_a_hang():
    watched = Watched(factor=2, at_least=60)
    watched.work(1, 1, 1, 1, 1)
    watched.wait(60)
    assert watched.hangs == []
    watched.wait(2)
    assert watched.hangs[0].startswith("No step or batch for 61 s (one usually takes 1.0 s)")


def test_a_hang_is_reported_once():
    watched = Watched(factor=2, at_least=60)
    watched.work(1, 1, 1)
    watched.wait(100)
    watched.dog.beat()
    watched.wait(100)
    assert len(watched.hangs) == 1


def wait_for_a_rank_that_never_comes(never):
    never.wait(60)


def test_the_report_shows_where_every_thread_is_and_a_file_has_it_too(tmp_path):
    never = threading.Event()
    stuck = threading.Thread(target=wait_for_a_rank_that_never_comes, args=(never,))
    stuck.start()
    watched = Watched(start_limit=60)
    watched.wait(70)
    never.set()
    join(stuck)
    (text,) = watched.hangs
    assert "since the last" in text
    assert "in wait_for_a_rank_that_never_comes" in text
    assert re.search(r"test_watchdog\.py\", line \d+ in test_the_report_shows", text)
    [file] = tmp_path.glob("pion-hang-*.txt")
    assert text.splitlines()[-1] == f"(also in {file})"
    assert file.read_text() in text


def test_a_hang_is_reported_when_no_file_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    watched = Watched(start_limit=60)
    watched.wait(70)
    (text,) = watched.hangs
    assert "in test_a_hang_is_reported_when_no_file_can_be_written" in text
    assert "(not written to a file: " in text


def test_a_start_may_take_longer_than_a_step():
    watched = Watched(factor=2, at_least=5, start_limit=600)
    watched.wait(500)
    watched.dog.beat()  # the first step, compiled
    watched.wait(500)
    assert watched.hangs == []


def test_the_limit_grows_with_the_usual_step():
    watched = Watched(factor=100, at_least=5)
    watched.work(10, 10, 10, 10)
    watched.wait(1000)
    assert watched.hangs == []
    watched.wait(2)
    assert len(watched.hangs) == 1


def test_one_slow_step_does_not_change_what_is_usual():
    watched = Watched(factor=2, at_least=100)
    watched.work(1, 1, 1, 1, 1, 80)  # a mean of 14 s
    watched.wait(102)
    assert "one usually takes 1.0 s" in watched.hangs[0]


def test_what_gets_on_without_a_step_is_no_hang_until_it_stops():
    watched = Watched(factor=2, at_least=50)
    watched.work(1, 1, 1, 1, 1)
    for _ in range(15):
        watched.wait(40)
        watched.dog.progress()
    assert watched.hangs == []
    watched.wait(52)
    assert watched.hangs[0].startswith("No step or batch for 51 s")


def test_what_gets_on_without_a_step_does_not_change_what_is_usual():
    watched = Watched(factor=2, at_least=100)
    watched.work(1, 1, 1, 1, 1)
    for _ in range(6):
        watched.wait(30)
        watched.dog.progress()
        watched.dog.beat()
    watched.wait(102)
    assert "one usually takes 1.0 s" in watched.hangs[0]


def test_progress_before_the_first_steps_leaves_them_the_time_of_a_start():
    watched = Watched(factor=2, at_least=5, start_limit=600)
    watched.dog.progress()
    watched.dog.progress()
    watched.wait(500)
    assert watched.hangs == []


def test_nothing_is_expected_during_a_pause_and_counting_restarts_after_it():
    watched = Watched(factor=2, at_least=50)
    watched.work(1, 1, 1, 1, 1)
    with watched.dog.paused():
        with watched.dog.paused():
            watched.wait(100)
        watched.wait(100)
    watched.wait(50)
    assert watched.hangs == []
    watched.wait(2)
    assert watched.hangs[0].startswith("No step or batch for 51 s")


def test_a_pause_that_raises_is_over():
    watched = Watched(factor=2, at_least=50)
    watched.work(1, 1, 1)
    with pytest.raises(OSError, match="the store is down"), watched.dog.paused():
        raise OSError("the store is down")
    watched.wait(52)
    assert len(watched.hangs) == 1


def test_a_pause_is_no_usual_interval():
    watched = Watched(factor=2, at_least=5, start_limit=600)
    watched.dog.beat()
    with watched.dog.paused():
        watched.wait(30)
    watched.dog.beat()  # still no interval between two beats, so the limit for the start applies
    watched.wait(500)
    assert watched.hangs == []


def test_time_in_which_the_watchdog_itself_did_not_look_is_no_hang():
    watched = Watched(factor=2, at_least=50)
    watched.work(1, 1, 1, 1, 1)
    watched.time += 3600  # a laptop was closed
    watched.wait(50)
    assert watched.hangs == []
    watched.wait(2)
    assert watched.hangs[0].startswith("No step or batch for 51 s")


# ---------------------------------------------------------------- its thread


@pytest.fixture
def reports():
    """The reports of a watchdog that checks from its own thread."""
    reports = []
    dog = Watchdog(reports.append, start_limit=0.1)
    dog.start()
    yield reports
    dog.close()


def test_its_thread_notices_a_hang_by_itself(reports):
    wait_until(lambda: reports, "the watchdog to report")
    assert "in test_its_thread_notices_a_hang_by_itself" in reports[0]


def test_a_closed_watchdog_looks_no_more():
    reports = []
    dog = Watchdog(reports.append, start_limit=60)
    dog.start()
    dog.close()
    assert not any(thread.name == "watchdog" for thread in threading.enumerate())
    assert reports == []


def test_whoever_is_told_of_a_hang_may_close_the_watchdog():
    closed = threading.Event()

    def close(_):
        dog.close()
        closed.set()

    dog = Watchdog(close, start_limit=0.1)
    dog.start()
    assert closed.wait(60)


def test_work_with_limits_of_its_own_belongs_to_the_usual_step_and_is_no_hang():
    watched = Watched(factor=2, at_least=60)
    for _ in range(3):
        with watched.dog.paused(counted=True):
            watched.wait(300)
        watched.work(20)
    watched.wait(600)
    assert watched.hangs == []
    watched.wait(50)
    assert "(one usually takes 320.0 s)" in watched.hangs[0]
