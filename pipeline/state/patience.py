"""Keep retrying while a store is down, so that a short outage does not waste paid work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.console.formats import moment
from pipeline.state.stores import StoreError

FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 2.0, 60.0

Result = TypeVar("Result")


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

    def __call__(self, work: Callable[[], Result]) -> Result:
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
