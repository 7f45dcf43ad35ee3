"""The clocks of this machine, and of a store's service: this machine's own may be wrong."""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TypeVar

from pipeline.state.stores.base import Store, StoreError

EVERY_SECONDS = 300.0
JUMP_SECONDS = 5.0
# After a jump, or when the store has never said its time: ask again this soon, because a laptop
# often wakes up some seconds before its network.
AGAIN_SECONDS = 30.0
_TRIES = 3

T = TypeVar("T")


@dataclass(frozen=True)
class Clock:
    """This machine's clocks, so that tests can replace them.

    `now` is Unix time, which jumps when somebody sets the clock. `monotonic` never jumps, and may
    stand still while the machine sleeps.
    """

    now: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def until(self, check: Callable[[], T], seconds: float, every: float) -> T:
        """Call `check` until it answers something other than None or False, or so many seconds have
        passed; return its last answer. It is called at least once, and again each `every` seconds.
        """
        end = self.monotonic() + seconds
        while True:
            answer = check()
            if not (answer is None or answer is False) or self.monotonic() >= end:
                return answer
            self.sleep(every)


def parse_date(value: str | None) -> float | None:
    """Return the Unix seconds of an answer's `Date` header; None if it is missing or unreadable.

    The header says whole seconds, so the middle of that second is returned.
    """
    try:
        date = parsedate_to_datetime(value or "")
        # A header without a zone means UTC. Python would take the zone of this machine.
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() + 0.5
    except (ValueError, OverflowError):
        return None


class StoreClock:
    """The time by the clock of a store's service, measured now and then. For one thread only.

    Between two measurements, the monotonic clock counts. After a sleep that neither of the
    machine's clocks has counted, the time is therefore late until the next measurement.
    """

    def __init__(self, clock: Clock, store: Store) -> None:
        self._clock, self._store = clock, store
        self._ahead = self._wall_ahead()
        # Unix seconds by the service's clock at monotonic time 0; None: not known.
        self._offset: float | None = None
        self._due = -math.inf

    def now(self) -> float:
        """Return Unix seconds by the service's clock, or by this machine's if that is not known.

        Asks the store at the first call, every 300 s, and after a jump of this machine's clock:
        the machine slept, or somebody set its clock. If the store can't be asked, the last
        measurement holds, unless the clock has jumped since. So the time may also move backwards.
        Never raises `StoreError`; a store that is down makes the call take as long as its retries.
        """
        if self._has_jumped():
            self._offset, self._due = None, -math.inf
        if self._clock.monotonic() >= self._due:
            self._measure()
        ahead = self._offset
        return self._clock.now() if ahead is None else self._clock.monotonic() + ahead

    def _measure(self) -> None:
        for _ in range(_TRIES):
            service_time = None
            with contextlib.suppress(StoreError):
                service_time = self._store.service_time()
            arrived = self._clock.monotonic()
            if not self._has_jumped():
                if service_time is not None:
                    self._offset = service_time - arrived
                break
            self._offset = None  # the machine slept, perhaps after the service said its time
        is_measured = self._offset is not None
        self._due = self._clock.monotonic() + (EVERY_SECONDS if is_measured else AGAIN_SECONDS)

    def _has_jumped(self) -> bool:
        """Return whether one of this machine's clocks has moved against the other since the last
        call."""
        before, self._ahead = self._ahead, self._wall_ahead()
        return abs(self._ahead - before) > JUMP_SECONDS

    def _wall_ahead(self) -> float:
        return self._clock.now() - self._clock.monotonic()
