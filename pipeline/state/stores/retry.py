"""Retry a request to a remote store if its error may be temporary.

Full-jitter exponential backoff: before the n-th retry, wait a random time of up to 0.25 s × 2ⁿ, so
that many machines that failed at the same time don't retry at the same time.
"""

import random
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Protocol, TypeVar

TRIES = 8
BASE_SECONDS = 0.25
CAP_SECONDS = 20.0
TOTAL_SECONDS = 90.0
# If the server asks for a longer wait than the limits above allow, wait up to this many seconds.
LONGEST_RETRY_AFTER = 120.0

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
            asked = parse_retry_after(retry_after(error), now())
        sleep(max(min(backoff, left), min(asked, LONGEST_RETRY_AFTER)))
    raise AssertionError("the last try returns or raises")


def parse_retry_after(value: str | None, now: float) -> float:
    """Return the seconds that a Retry-After header (seconds or an HTTP date) asks for; 0 if
    none."""
    if value is None:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now
        except ValueError:
            return 0.0
    return max(0.0, seconds) if seconds == seconds else 0.0
