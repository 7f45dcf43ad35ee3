"""A long notice is used until the last save needs the rest; a short notice stops a run at once."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline.run import preemption_stop
from pipeline.run.preemption_stop import PreemptionStop
from pipeline.run.signals import StoppingOnSignals
from pipeline.training.cadence import LEAST_SAVE, LONG_NOTICE, SPARE_SECONDS, seconds_to_leave
from tests.support.jobs import SilentDisplay
from tests.support.waiting import wait_until

NOTICE = "AWS will take this machine in 120 s (terminate)"


class Run:
    """A run that may be told of notices and saves."""

    def __init__(self):
        self.said: list[str] = []
        self.stopping = StoppingOnSignals(SilentDisplay())
        self.preemption_stop = PreemptionStop(self.stopping, self.said.append)

    @property
    def left(self):
        """Seconds until the machine is taken, once the run was asked to stop."""
        return self.stopping.deadline.at - time.monotonic()

    def stops(self):
        wait_until(lambda: self.stopping.asked, "the run to be asked to stop")


@pytest.fixture
def run():
    run = Run()
    with run.preemption_stop:
        yield run


@pytest.fixture
def exact(monkeypatch):
    """Let a run leave when exactly what a save takes is left."""
    monkeypatch.setattr(preemption_stop, "seconds_to_leave", lambda stall, write: stall + write)


def test_what_is_left_for_the_last_save_is_twice_a_save_and_ten_seconds():
    assert seconds_to_leave(1.0, 17.0) == 2 * 18.0 + 10.0
    assert seconds_to_leave(0.0, 0.1) == 2 * LEAST_SAVE + SPARE_SECONDS


@pytest.mark.parametrize("seconds", [5.0, 30.0, LONG_NOTICE - 1])
def test_a_short_notice_stops_the_run_at_once(run, seconds):
    run.preemption_stop.saved(0.1, 0.9)
    run.preemption_stop.noticed(NOTICE, seconds)
    assert run.stopping.asked
    assert seconds - 1 < run.left <= seconds
    assert run.said == []


@pytest.mark.parametrize("save", [(None, None), (5.0, 60.0)], ids=["not measured", "needs all"])
def test_a_long_notice_stops_a_run_at_once_that_may_need_all_of_it_to_save(run, save):
    run.preemption_stop.saved(*save)
    run.preemption_stop.noticed(NOTICE, 120.0)
    assert run.stopping.asked


def test_a_long_notice_lets_the_run_continue_until_the_save_needs_the_rest(run, exact):
    run.preemption_stop.saved(0.1, 119.6)
    run.preemption_stop.noticed(NOTICE, 120.0)
    assert not run.stopping.asked
    assert run.said == [f"{NOTICE}. Training continues, and stops in time for the last save"]
    run.stops()
    assert 118 < run.left <= 119.7
    assert run.stopping.asked_stop.reason == NOTICE


def test_a_save_that_takes_longer_lets_the_run_leave_earlier(run, exact):
    run.preemption_stop.saved(1.0, 1.0)
    run.preemption_stop.noticed(NOTICE, 120.0)
    run.preemption_stop.saved(1.0, 119.0)
    run.stops()
    assert run.left > 118


def test_of_the_notices_of_several_nodes_the_shortest_counts(run, exact):
    run.preemption_stop.saved(1.0, 69.5)
    run.preemption_stop.noticed("node 1", 120.0)
    run.preemption_stop.noticed("node 2", 71.0)
    run.preemption_stop.noticed("node 3", 110.0)
    assert not run.stopping.asked
    run.stops()
    assert run.stopping.asked_stop.reason == "node 2"
    assert 69 < run.left <= 70.5
    assert len(run.said) == 2


def test_a_short_notice_after_a_long_notice_stops_the_run_at_once(run):
    run.preemption_stop.saved(1.0, 1.0)
    run.preemption_stop.noticed("node 1", 120.0)
    run.preemption_stop.noticed("node 2", 5.0)
    assert run.stopping.asked
    assert run.left <= 5.0


def test_a_run_that_has_ended_is_not_asked_to_stop():
    run = Run()
    with run.preemption_stop:
        run.preemption_stop.saved(1.0, 1.0)
        run.preemption_stop.noticed(NOTICE, 120.0)
    wait_until(
        lambda: not any(thread.name == "preemption_stop" for thread in threading.enumerate()),
        "the thread to end",
    )
    assert not run.stopping.asked
