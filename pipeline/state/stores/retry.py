"""Try a request to a remote store again when trying again can help.

Full-jitter exponential backoff: before the n-th repetition, wait a random time of up to
0.25 s × 2ⁿ, so that many machines that failed together don't come back together.
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
# A wait that the server asks for is obeyed up to this many seconds, even if it exceeds the bounds
# above.
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
    """`call()`'s result, after at most 8 tries that begin within 90 s.

    `retry_after` finds the value of the answer's Retry-After header in an error; tries never come
    sooner than it says. Raises what the last try raised; other than transient errors at once.
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
    """Seconds that a Retry-After header (seconds, or an HTTP date) asks to wait; 0 if none."""
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
