"""A hang is noticed, described and reported once. Slow, paused or suspended work does not hang."""

from __future__ import annotations

import re
import tempfile
import threading
from contextlib import AbstractContextManager

import pytest

from pipeline.training.watchdog import Watchdog
from tests.support.waiting import join, wait_until


class Watched:
    """A watchdog on a clock that tests move, and what it reported."""

    def __init__(self, **limits):
        self.time = 1000.0
        self.hangs: list[str] = []
        self.dog = Watchdog(self.hangs.append, now=lambda: self.time, **limits)
        self.pauses: list[AbstractContextManager[None]] = []

    def wait(self, seconds):
        """Let time pass; the watchdog checks as often as usual."""
        end = self.time + seconds
        while self.time < end:
            self.time = min(end, self.time + self.dog.period)
            self.dog.check()

    def live(self, day):
        """Let a day of DAYS pass."""
        for event in day.split(", "):
            what, _, seconds = event.partition(" ")
            if what == "quiet":
                assert self.hangs == []
            elif what == "pause":
                self.pauses.append(self.dog.paused(counted=seconds == "counted"))
                self.pauses[-1].__enter__()
            elif what == "resume":
                self.pauses.pop().__exit__(None, None, None)
            elif what == "asleep":
                self.time += float(seconds)
            elif what == "wait":
                self.wait(float(seconds))
            elif what == "work":
                for each in map(float, seconds.split()):
                    self.wait(each)
                    self.dog.beat()
            else:
                {"beat": self.dog.beat, "progress": self.dog.progress}[what]()


@pytest.fixture(autouse=True)
def _files_here(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


USUAL = "work 1 1 1 1 1"
MANY = {"factor": 2, "at_least": 5, "start_limit": 600}
# What is special → the limits, what happens, and what the only report says; None: there is none.
DAYS = {
    "silence after some steps": (
        {"at_least": 60},
        f"{USUAL}, wait 60, quiet, wait 2",
        "No step or batch for 61 s (one usually takes 1.0 s)",
    ),
    "reported once": ({"at_least": 60}, "work 1 1 1, wait 100, beat, wait 100", "No step"),
    "a first step that compiles": (MANY, "wait 500, beat, wait 500", None),
    "slow steps": ({"factor": 100}, "work 10 10 10 10, wait 1000, quiet, wait 2", "No step"),
    "one slow step": ({"at_least": 100}, f"{USUAL} 80, wait 102", "one usually takes 1.0 s"),
    "progress until it stops": (
        {"at_least": 50},
        f"{USUAL}, {'wait 40, progress, ' * 15}quiet, wait 52",
        "No step or batch for 51 s",
    ),
    "progress is no usual step": (
        {"at_least": 100},
        f"{USUAL}, {'wait 30, progress, beat, ' * 6}wait 102",
        "one usually takes 1.0 s",
    ),
    "progress before the first steps": (MANY, "progress, progress, wait 500", None),
    "pauses": (
        {"at_least": 50},
        f"{USUAL}, pause, pause, wait 100, resume, wait 100, resume, wait 50, quiet, wait 2",
        "No step or batch for 51 s",
    ),
    "a pause is no usual interval": (MANY, "beat, pause, wait 30, resume, beat, wait 500", None),
    "a laptop that was closed": (
        {"at_least": 50},
        f"{USUAL}, asleep 3600, wait 50, quiet, wait 2",
        "No step or batch for 51 s",
    ),
    "work with its own limits is a part of the usual step": (
        {"at_least": 60},
        f"{'pause counted, wait 300, resume, work 20, ' * 3}wait 600, quiet, wait 50",
        "(one usually takes 320.0 s)",
    ),
}


@pytest.mark.parametrize(("limits", "day", "report"), DAYS.values(), ids=DAYS)
def test_only_silence_for_longer_than_usual_is_a_hang(limits, day, report):
    watched = Watched(**{"factor": 2, "at_least": 5, **limits})
    watched.live(day)
    assert [report in text for text in watched.hangs] == ([] if report is None else [True])


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


def test_a_pause_that_raises_is_over():
    watched = Watched(factor=2, at_least=50)
    watched.live("work 1 1 1")
    with pytest.raises(OSError, match="the store is down"), watched.dog.paused():
        raise OSError("the store is down")
    watched.wait(52)
    assert len(watched.hangs) == 1


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
