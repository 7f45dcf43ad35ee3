"""SkyPilot is refused with a reason where it can't work."""

import logging
import pwd
import threading

import pytest

from pion.errors import BadInput
from pipeline.rent.skypilot import quiet, sky_module
from tests.support.waiting import PATIENCE_SECONDS, join


def test_a_user_without_a_name_is_told_to_set_one(monkeypatch):
    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(BadInput, match=r"has none for user \d+\. Set USER=NAME"):
        sky_module()


def test_a_thread_that_waits_for_skypilot_holds_no_other_up():
    sky_module()  # sets the level when it is imported first
    logger = logging.getLogger("sky")
    before = logger.level
    inside, leave = threading.Event(), threading.Event()

    def submit():
        with quiet():
            inside.set()
            assert leave.wait(PATIENCE_SECONDS)

    thread = threading.Thread(target=submit)
    thread.start()
    assert inside.wait(PATIENCE_SECONDS)
    with quiet():  # a lock that the other thread keeps would end this test by its time-out
        assert logger.level == logging.CRITICAL
    assert logger.level == logging.CRITICAL  # the other thread is still silent
    leave.set()
    join(thread)
    assert logger.level == before
