"""How long a command waits for a store that is down."""

import math

import pytest

from pipeline.state.stores import StoreError
from pipeline.state.stores.retry import FIRST_RETRY_SECONDS, Patience


class Down:
    """A store that is down for some seconds, and the clock of the process that waits for it."""

    def __init__(self, seconds, linger):
        self.seconds, self.now, self.calls = seconds, 0.0, 0
        self.said = []
        self.patiently = Patience(linger, self.said.append, self.sleep, now=lambda: self.now)

    def sleep(self, seconds):
        self.now += seconds

    def read(self):
        self.calls += 1
        if self.now < self.seconds:
            raise StoreError("read", "HEAD.json", "the test says so", outage=True)
        return "content"


def test_an_outage_is_reported_once_with_its_deadline_and_its_end():
    down = Down(seconds=500.0, linger=600.0)
    assert down.patiently(down.read) == "content"
    began, over = down.said
    assert began.startswith("Cannot read HEAD.json: the test says so. Trying again until 20")
    assert over == "the store can be reached again"


@pytest.mark.parametrize("linger", [0.0, 1.0, 600.0])
def test_retries_continue_for_exactly_as_long_as_the_job_says(linger):
    down = Down(seconds=math.inf, linger=linger)
    with pytest.raises(StoreError):
        down.patiently(down.read)
    assert down.now == linger
    assert len(down.said) == (1 if linger else 0)


def test_a_job_may_wait_forever():
    down = Down(seconds=1e6, linger=math.inf)
    assert down.patiently(down.read) == "content"
    assert down.said[0].endswith("Trying again for as long as it takes.")


def test_an_error_that_retries_cannot_fix_is_raised_at_once():
    down = Down(seconds=0.0, linger=600.0)

    def refuse():
        raise StoreError("read", "HEAD.json", "access was denied")

    with pytest.raises(StoreError):
        down.patiently(refuse)
    assert (down.now, down.said) == (0.0, [])


def test_a_refusal_during_an_outage_is_raised_at_once():
    down = Down(seconds=math.inf, linger=600.0)

    def read():
        if down.now:
            raise StoreError("read", "HEAD.json", "access was denied")
        return down.read()

    with pytest.raises(StoreError, match="access was denied"):
        down.patiently(read)
    assert down.now == FIRST_RETRY_SECONDS
