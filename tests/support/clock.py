"""A clock that only moves when told."""

from collections.abc import Callable

from pipeline.state.stores.clock import Clock


class FakeClock:
    """Time that only passes in `sleep`; `during_sleep` runs after each sleep.

    `wall_ahead` is how many seconds `now` is ahead of `monotonic`: change it to set the clock.
    """

    def __init__(self) -> None:
        self.time = 1_000_000.0
        self.wall_ahead = 0.0
        self.during_sleep: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.during_sleep()

    def clock(self) -> Clock:
        return Clock(
            now=lambda: self.time + self.wall_ahead, monotonic=lambda: self.time, sleep=self.sleep
        )
