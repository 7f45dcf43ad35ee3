"""Work that may take forever is waited for longer where the machine is slow."""

import threading

import pytest

from pion.errors import BadInput
from pipeline.machine import time_limit
from pipeline.machine.time_limit import begin, within


def test_work_on_a_busy_machine_has_more_time(monkeypatch):
    asked = threading.Event()

    def slowness():
        asked.set()
        return 1e6

    monkeypatch.setattr(time_limit, "slowness", slowness)
    assert within(1e-3, lambda: asked.wait(60))


def test_work_that_never_ends_is_not_waited_for(monkeypatch):
    forever = threading.Event()
    with pytest.raises(TimeoutError, match="no answer in time"):
        within(1e-3, forever.wait)
    forever.set()


def test_an_error_in_the_other_thread_is_raised_where_it_is_waited_for():
    def fail():
        raise BadInput("no such thing")

    wait = begin(fail)
    with pytest.raises(BadInput, match="no such thing"):
        wait(lambda: 5.0)
