"""Try again what may succeed later: a request for seconds, and work during an outage for minutes.

Of a request: full-jitter exponential backoff. Before the n-th retry, wait a random time of up to
0.25 s × 2ⁿ, so that many machines that failed at the same time don't retry at the same time.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from pipeline.console.formats import moment
from pipeline.state.stores.base import StoreError
from pipeline.state.stores.clock import parse_date

# A request.
TRIES = 8
BASE_SECONDS = 0.25
CAP_SECONDS = 20.0
TOTAL_SECONDS = 90.0
# If the server asks for a longer wait than the limits above allow, wait up to this many seconds.
LONGEST_RETRY_AFTER = 120.0
# An outage.
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 2.0, 60.0

T = TypeVar("T")


class Retry(Protocol):
    """`retrying` with a store's own idea of which errors are transient."""

    def __call__(self, call: Callable[[], T]) -> T: ...


def retrying(
    call: Callable[[], T],
    is_transient: Callable[[Exception], bool],
    *,
    retry_after: Callable[[Exception], str | None] = lambda error: None,
    sleep: Callable[[float], None] = time.sleep,
    uniform: Callable[[float, float], float] = random.uniform,
    now: Callable[[], float] = time.time,
    monotonic: Callable[[], float] = time.monotonic,
) -> T:
    """Return `call()`'s result, after at most 8 tries that begin within 90 s.

    `retry_after` returns the value of the response's Retry-After header for an error. The next try
    waits at least that long, up to 120 s. Raises the last try's error; raises an error that is not
    transient at once.
    """
    started = monotonic()
    for failures in range(1, TRIES + 1):
        try:
            return call()
        except Exception as error:
            left = TOTAL_SECONDS - (monotonic() - started)
            if failures == TRIES or left <= 0 or not is_transient(error):
                raise
            backoff = uniform(0.0, min(CAP_SECONDS, BASE_SECONDS * 2 ** (failures - 1)))
            service_seconds = parse_retry_after(retry_after(error), now())
        sleep(max(min(backoff, left), min(service_seconds, LONGEST_RETRY_AFTER)))
    raise AssertionError("the last try returns or raises")


def parse_retry_after(value: str | None, now: float) -> float:
    """Return the seconds that a Retry-After header (seconds or an HTTP date) asks for; 0 if
    none."""
    try:
        seconds = float(value or 0.0)
    except ValueError:
        seconds = (parse_date(value) or now) - now
    return 0.0 if math.isnan(seconds) else max(0.0, seconds)


class Patience:
    """Retries work that failed because the store was down, for up to `seconds` per outage.

    `say` gets one message when an outage begins and one when it ends. `sleep` waits between two
    tries and raises if the process is asked to stop.
    """

    def __init__(
        self,
        seconds: float,
        say: Callable[[str], None],
        sleep: Callable[[float], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._say, self._sleep, self._now = seconds, say, sleep, now

    def __call__(self, work: Callable[[], T]) -> T:
        """Return what `work` returns.

        `work` must be idempotent: it may run again although the first call succeeded and only its
        response was lost. Raises the StoreError of an outage once `seconds` have passed, and any
        other error of `work` at once.
        """
        try:
            return work()
        except StoreError as error:
            if not error.outage or self._seconds <= 0:
                raise
            self._say(f"{error} Trying again {_until(self._seconds)}.")
        end, delay = self._now() + self._seconds, FIRST_RETRY_SECONDS
        while True:
            self._sleep(max(0.0, min(delay, end - self._now())))
            try:
                result = work()
            except StoreError as error:
                if not error.outage or self._now() >= end:
                    raise
                delay = min(delay * 2, LAST_RETRY_SECONDS)
            else:
                self._say("the store can be reached again")
                return result


def _until(seconds: float) -> str:
    try:
        return f"until {moment(time.time() + seconds)}"
    except (OverflowError, ValueError):  # a job may say .inf
        return "for as long as it takes"
